"""Shared by tests: rows of every kind, and the videos and pictures that they name."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_world import videos


def row(uid: str, text: str, answer: str = "red", **media) -> dict:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return {"uid": uid, "data_type": "conversations", "conversations": turns, **media}


def make_media(folder: Path, tiny: Path) -> Path:
    """The media of ROWS: videos and pictures of several sizes, one of them lying on its side."""
    for number, path in enumerate(videos(tiny)[:3]):
        shutil.copy(path, folder / f"v{number}.mp4")
    rng = np.random.default_rng(0)
    for name, size in (("small", (40, 30)), ("wide", (300, 60)), ("large", (200, 190))):
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(folder / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 255, (60, 300, 3), dtype=np.uint8)).save(folder / "turned.jpg", exif=exif)
    return folder


ROWS = [
    row("text", "Which is first?", "the red one, long before the others"),
    row("video", "<video>\nWhat?", video="v0.mp4"),
    row("clip", "<video>\nWhat?", video="v0.mp4", start_sec=1.0, end_sec=3.5),
    row("times", "<video>\nWhat?", video="v0.mp4", timestamps=[0.2, 0.9, 1.4, 2.0, 2.2]),
    row("two videos", "<video> and <video>: same?", video=["v1.mp4", "v2.mp4"]),
    row("image", "<image>\nWhat?", image="small.png"),
    row("tiles", "<image>\nWhat?", image="wide.png"),
    row("turned", "<image>\nWhat?", image="turned.jpg"),
    row("images", "<image><image> <image> which?", image=["large.png", "small.png", "wide.png"]),
    row("both", "<image> in <video>?", image="large.png", video="v2.mp4"),
    {"uid": "caption", "data_type": "caption", "video": "v1.mp4", "caption": "a red circle"},
    {
        "uid": "interleave",
        "data_type": "interleave",
        "image": ["small.png", None, "wide.png", None],
        "caption": [None, "a", None, "b"],
    },
]
