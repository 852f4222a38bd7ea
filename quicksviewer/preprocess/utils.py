"""Paths, choices and pictures: what converters and tools of this folder share.

A path that a row of a data set says is never trusted: `inside` lets it name files of the media root alone.
"""

import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from PIL import Image

from quicksviewer.preprocess.files import Place
from quicksviewer.utils.media import HEAD_BYTES, MediaLimits, check_kind
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
