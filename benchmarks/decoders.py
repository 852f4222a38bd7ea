"""One frame a second of long H.264 videos: ours, OpenCV, a PyAV loop, decord and torchcodec (P7).

    python benchmarks/decoders.py [--seconds 300] [--repeats 5]

Every side opens the file, gives the frames in the middle of each second as RGB, and may use two threads. The
frames of a plain decode of everything are the truth: which sides give them bit for bit is told, and that ours
and the PyAV loop do is asserted first. The other sides give the same moments; OpenCV converts colours in a
way of its own. The ancestor's loop is OpenCV's: `grab` all frames up to the next, `retrieve` that one.
Prints one JSON.
"""

import argparse
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from common import interleaved, ratio_row
from PIL import Image, ImageFilter

from quicksviewer.utils.data_util import VIDEO_READERS, open_video
from quicksviewer.utils.packets import read_packets

FPS, THREADS = 30, 2
WIDTH, HEIGHT = 640, 360
GROUPS = {"gop30": 30, "gop250": 250}
AGAINST_BEST, AGAINST_OPENCV, COVER = 0.95, 3.0, 1.05


def scene(seconds: int) -> Iterator[np.ndarray]:
    """Frames with texture and motion: a window that swings over a soft picture, another one every 8 s."""
    rng = np.random.default_rng(0)
    for number in range(seconds * FPS):
        if number % (8 * FPS) == 0:
            noise = rng.integers(0, 255, (HEIGHT + 120, WIDTH + 240, 3), dtype=np.uint8)
            ground = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)))
        x, y = 120 + round(119 * np.sin(number / 40)), 60 + round(59 * np.cos(number / 55))
        yield ground[y : y + HEIGHT, x : x + WIDTH]


def write_film(path: Path, seconds: int, group: int) -> None:
    """H.264 as x264 writes it by default, but for the length of its groups."""
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "26"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", group
        for number, picture in enumerate(scene(seconds)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# Sides: (path, seconds) -> uint8 (N, H, W, 3)


def plainly(path: str, times: list[float]) -> np.ndarray:
    """The PyAV loop: decode all, keep what is asked for."""
    wanted, kept = {int(time * FPS) for time in times}, []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
    return np.stack(kept)


def by_opencv(path: str, times: list[float]) -> np.ndarray:
    import cv2

    video, wanted, kept, number = cv2.VideoCapture(path), {int(time * FPS) for time in times}, [], 0
    while video.grab():
        if number in wanted:
            kept.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
        number += 1
    video.release()
    return np.stack(kept)


def by_decord(path: str, times: list[float]) -> np.ndarray:
    import decord

    video = decord.VideoReader(path, num_threads=THREADS)
    return video.get_batch([int(time * FPS) for time in times]).asnumpy()


def by_torchcodec(path: str, times: list[float]) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=THREADS)
    return video.get_frames_played_at(times).data.numpy()


def ours(path: str, times: list[float], decoder: str = "av") -> np.ndarray:
    with open_video(path, decoder) as video:
        return video.frames_at(times)


PEERS: dict[str, tuple[str, Callable]] = {
    "pyav_loop": ("av", plainly),
    "opencv": ("cv2", by_opencv),
    "decord": ("decord", by_decord),
    "torchcodec": ("torchcodec.decoders", by_torchcodec),
}
"""Name -> the module that it needs, and the side."""


def can_be_used(module: str) -> str | None:
    """Why a module cannot be imported; None where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a package whose libraries are missing fails in its own ways
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    missing = {name: why for name, (module, _) in PEERS.items() if (why := can_be_used(module))}
    told = {"seconds": args.seconds, "size": [WIDTH, HEIGHT], "not_measured": missing}
    with tempfile.TemporaryDirectory() as folder:
        for name, group in GROUPS.items():
            path = Path(folder, f"{name}.mp4")
            write_film(path, args.seconds, group)
            told[name] = measure(str(path), args, missing)
    told["pass"] = all(told[name]["pass"] for name in GROUPS)
    print(json.dumps(told))
    return 0


def measure(path: str, args: argparse.Namespace, missing: dict) -> dict:
    times = [second + 0.5 for second in range(args.seconds)]
    truth = plainly(path, times)
    sides = {"ours": ours} | {name: side for name, (_, side) in PEERS.items() if name not in missing}
    # Our own readers behind the same calls, to choose the default by.
    for name in VIDEO_READERS:
        if name != "av" and name not in missing:
            sides[f"our_{name}"] = lambda path, times, name=name: ours(path, times, name)
    frames = {name: side(path, times) for name, side in sides.items()}
    assert np.array_equal(frames["ours"], truth) and np.array_equal(frames["pyav_loop"], truth)
    assert all(found.shape == truth.shape for found in frames.values())
    far = {name: float(np.abs(found.astype(np.int16) - truth).mean()) for name, found in frames.items()}
    assert max(far.values()) < 6, f"other moments, not other colours: {far}"
    seconds = interleaved({name: lambda s=side: s(path, times) for name, side in sides.items()}, args.repeats)
    rows = {name: ratio_row(seconds[name], seconds["ours"], AGAINST_BEST) for name in sides if name != "ours"}
    if "opencv" in rows and path.endswith("gop30.mp4"):
        rows["opencv"] = ratio_row(seconds["opencv"], seconds["ours"], AGAINST_OPENCV)
    counts = decoded(path, times)
    exact = [name for name, found in frames.items() if np.array_equal(found, truth)]
    passed = all(row["pass"] for row in rows.values()) and counts["share"] <= COVER
    return {"against": rows, "frames": counts, "bit_exact": exact, "mean_difference": far, "pass": passed}


def decoded(path: str, times: list[float]) -> dict:
    """Frames that ours decodes, against those from a key frame to each that is asked for."""
    packets = read_packets(path)
    keys, cover = np.flatnonzero(packets.is_key), set()
    for time in times:
        at = int(np.searchsorted(packets.seconds, time + 1e-6, side="right")) - 1
        cover |= set(range(int(keys[keys <= at].max()), at + 1))
    with open_video(path) as video:
        video.frames_at(times)
        count = video.decoded
    return {"asked": len(times), "cover": len(cover), "ours": count, "share": round(count / len(cover), 4)}


if __name__ == "__main__":
    raise SystemExit(main())
