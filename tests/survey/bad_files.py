"""Fifteen kinds of rows that go wrong, each a real file or a real line, and how many good ones one wants."""

import base64
import io
import json
import struct
from pathlib import Path

import av
import numpy as np
from PIL import Image

SEEN_TOGETHER = "duplicate id"
"""The kind that shows beside another row alone: check and index refuse it, training reads what they say."""
TEXT = [{"from": "human", "value": "Which is first?"}, {"from": "gpt", "value": "red"}]


def film(frames: int) -> bytes:
    """An mp4 of so many frames of 32 x 32 at 4 a second; with 0 it has a track without a sample."""
    held = io.BytesIO()
    with av.open(held, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
        for number in range(frames):
            picture = np.full((32, 32, 3), number * 9 % 255, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return held.getvalue()


def lying(data: bytes) -> bytes:
    """A film whose header says that its third frame has 50 MB."""
    lie = bytearray(data)
    struct.pack_into(">I", lie, lie.find(b"stsz") + 4 + 12 + 4 * 2, 50_000_000)
    return bytes(lie)


def too_long(data: bytes) -> bytes:
    """A film whose header says that it lasts fifty times as long; its own table of frames says otherwise."""
    lie = bytearray(data)
    at = lie.find(b"mdhd") + 4 + 16
    struct.pack_into(">I", lie, at, struct.unpack_from(">I", lie, at)[0] * 50)
    return bytes(lie)


def picture(broken: bool = False) -> bytes:
    """A JPEG; broken, its Huffman table is none."""
    held = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(held, "JPEG")
    data = bytearray(held.getvalue())
    if broken:
        table = data.find(b"\xff\xc4")
        data[table + 5 : table + 21] = b"\xff" * 16
    return bytes(data)


def row(uid: str, question: str = "What?", answer: str = "red", **keys) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"uid": uid, "data_type": "conversations", "conversations": turns, **keys}


def write_files(folder: Path) -> None:
    """The media that the rows name."""
    good = film(8)
    files = {
        "good.mp4": good,
        "cut.mp4": good[: len(good) // 2],
        "empty.mp4": b"",
        "words.mp4": b"these are words, not a video",
        "none.mp4": film(0),
        "one.mp4": film(1),
        "lying.mp4": lying(good),
        "longer.mp4": too_long(good),
        "locked.mp4": good,
        "good.jpg": picture(),
        "huffman.jpg": picture(broken=True),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "locked.mp4").chmod(0)


def bad_rows() -> dict[str, str | dict]:
    """Kind -> a row that cannot be used, or its line."""
    half = "data:image/jpeg;base64," + base64.b64encode(picture()).decode()[:-5] + "@@@"
    return {
        "truncated mp4": row("cut", video="cut.mp4"),
        "0 bytes": row("empty", video="empty.mp4"),
        "wrong type": row("words", video="words.mp4"),
        "bad Huffman": row("huffman", image="huffman.jpg"),
        "bad base64": row("base64", image=half),
        "bad JSON": '{"uid": "json", ',
        "0 frames": row("none", video="none.mp4"),
        "lying header": row("lying", video="lying.mp4"),
        "missing": row("missing", video="nowhere.mp4"),
        "permission": row("locked", video="locked.mp4"),
        "NaN time": json.dumps(row("nan", video="good.mp4", start_sec=float("nan"))),
        "huge text": row("huge", answer="red " * 20_000),
        "empty labels": row("silent", answer=" "),
        "wrong image count": row("count", "<image><image> same?", image="good.jpg"),
        SEEN_TOGETHER: row("good 0", "Who?", "blue"),
    }


def odd_rows() -> dict[str, dict]:
    """Kind -> a row that looks wrong and can be used."""
    return {
        "1 frame": row("one", video="one.mp4"),
        "header too long": row("longer", video="longer.mp4"),
    }


def write_rows(path: Path, share: float) -> set[int]:
    """Rows of which this share is bad, each kind once, spread over good ones; numbers of the bad lines."""
    bad, odd = list(bad_rows().values()), list(odd_rows().values())
    total = round(len(bad) / share)
    good = [row(f"good {n}", f"Which of {n}?", "red") for n in range(total - len(bad) - len(odd))]
    for number in range(0, len(good), 9):
        good[number] |= {"video": "good.mp4"} if number % 2 else {"image": "good.jpg"}
    lines = [*good, *odd]
    for place, one in enumerate(bad):
        lines.insert(round((place + 0.5) * total / len(bad)), one)
    lines = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    path.write_text("\n".join(lines) + "\n")
    wanted = {one if isinstance(one, str) else json.dumps(one) for one in bad}
    return {number for number, line in enumerate(lines, start=1) if line in wanted}
