"""Paths, choices and pictures: what converters and tools of this folder share.

A path that a row of a data set says is never trusted: `inside` lets it name files of the media root alone.
"""

import io
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TypeVar

import numpy as np
from PIL import Image, ImageSequence

from quicksviewer.preprocess.files import Place
from quicksviewer.utils.image import to_rgb
from quicksviewer.utils.media import HEAD_BYTES, MediaError, MediaLimits, check_kind
from quicksviewer.utils.media_gate import PROTOCOL, RootedPath, open_medium

Item = TypeVar("Item")
EXTENSIONS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "mp4": ".mp4",
    "matroska": ".mkv",
    "avi": ".avi",
}
"""Kind of content -> ending of the file that gets it."""
GIF_FRAMES, GIF_PAUSE = 20_000, 100
"""Most pictures of a GIF; milliseconds of one whose file says none, as browsers show it."""


def split_list(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """`count` runs of neighbours whose lengths differ by at most one; empty ones when items are few."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    bounds = [len(items) * place // count for place in range(count + 1)]
    return [items[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]


def inside(root: Place, path: str) -> str:
    """The path relative to the media root; ValueError when its text names anything else.

    Refused: addresses, `..`, control characters, absolute paths outside. Links are looked at by the gate when
    the file is opened.
    """
    if not path or any(ord(letter) < 32 for letter in path):
        raise ValueError(f"{path!r} is no path")
    if PROTOCOL.match(path):
        raise ValueError(f"{path!r} is an address; media are files below the media root, nothing is fetched")
    if path.startswith("/"):
        home = f"{root.root.rstrip('/')}/"
        if not path.startswith(home):
            raise ValueError(f"{path!r} lies outside the media root {root.root}")
        path = path[len(home) :]
    if ".." in path.split("/"):
        raise ValueError(f"{path!r} goes up with ..")
    return posixpath.normpath(path)


def check_medium(root: Place, name: str, kinds: tuple[str, ...], limits: MediaLimits) -> None:
    """MediaError when a file is of another kind, not whole, or outside and only linked to."""
    if root.is_local:
        open_medium(RootedPath(root.root, name), kinds, limits).close()
    else:
        limits.check_bytes(name, root.size(name))
        check_kind(name, root.read(name, 0, HEAD_BYTES), kinds)


@contextmanager
def opened_medium(root: Place, name: str) -> Iterator[RootedPath]:
    """A medium as decoders take it: bound to its root, or a copy when the root is not on this machine."""
    if root.is_local:
        yield RootedPath(root.root, name)
        return
    with tempfile.TemporaryDirectory() as folder, root.open(name) as there:
        copy = f"copy{posixpath.splitext(name)[1]}"
        with open(f"{folder}/{copy}", "wb") as file:
            shutil.copyfileobj(there, file)
        yield RootedPath(folder, copy)


def shrink(frame: np.ndarray, side: int) -> np.ndarray:
    """The frame, uint8 (H, W, 3), with a shorter side of at most `side` pixels; 0 leaves it as it is."""
    height, width = frame.shape[:2]
    scale = side / min(height, width) if side else 1.0
    if scale >= 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


@contextmanager
def _gif_errors(name: str):
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise MediaError(name, f"damaged GIF: {error}") from error


def gif_frames(data: bytes, name: str, limits: MediaLimits) -> tuple[list[np.ndarray], list[int]]:
    """Pictures of a GIF, uint8 (H, W, 3) of even sides, and how long each is shown, in milliseconds."""
    check_kind(name, data[:HEAD_BYTES], ["GIF"])
    frames, millis, taken = [], [], 0
    with _gif_errors(name), Image.open(io.BytesIO(data), formats=["GIF"]) as image:
        limits.check_pixels(name, *image.size)
        width, height = image.size[0] // 2 * 2, image.size[1] // 2 * 2
        if not width or not height:
            raise MediaError(name, f"{image.size[0]}x{image.size[1]} is too small for a video")
        for picture in ImageSequence.Iterator(image):
            taken += width * height * 3
            if len(frames) == GIF_FRAMES or taken > limits.max_decoded_bytes:
                raise MediaError(name, f"more than {len(frames)} pictures, or than may be decoded at once")
            frames.append(np.asarray(to_rgb(picture))[:height, :width])
            millis.append(int(picture.info.get("duration") or GIF_PAUSE))
    return frames, millis


def gif_to_mp4(data: bytes, name: str, limits: MediaLimits) -> bytes:
    """The same pictures at the same times as H.264 in mp4. MediaError when it is no usable GIF."""
    import av

    frames, millis = gif_frames(data, name, limits)
    base, start, target = Fraction(1, 1000), 0, io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        # Without B-frames a packet is a frame, so that the last one can be told how long it lasts.
        stream = container.add_stream("libx264", options={"crf": "18", "preset": "veryfast", "bf": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        stream.codec_context.thread_count = 1
        packets = []
        for picture, duration in zip(frames, millis, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = start, base
            packets += stream.encode(frame)
            start += duration
        for packet, duration in zip([*packets, *stream.encode()], millis, strict=True):
            packet.duration = duration
            container.mux(packet)
    return target.getvalue()
