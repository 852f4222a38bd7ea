"""A video whose frames are stored as pictures, behind the calls of a VideoReader; pictures become pixels."""

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from quicksviewer.utils.decode_pool import IsolatedReader
from quicksviewer.utils.image import load_image, opened, to_rgb
from quicksviewer.utils.media import HEAD_BYTES, IMAGE_KINDS, MediaError, MediaLimits, check_kind
from quicksviewer.utils.media_gate import BYTES_NAME, MediaFile, unnamed_file
from quicksviewer.utils.video import Closing, VideoInfo, check_info, checked_times, index_at, shape_of

SLACK = 1e-6
"""Seconds by which a time may miss the start of a frame through rounding."""


class StoredVideo(Closing):
    """Frame i is on screen from second i / fps on. `decode`: indices -> uint8 (N, H, W, 3)."""

    def __init__(self, info: VideoInfo, limits: MediaLimits, decode: Callable[[list[int]], np.ndarray]):
        """Raises MediaError beyond the limits."""
        self._info, self._limits, self._decode = check_info(info, limits), limits, decode

    def probe(self) -> VideoInfo:
        return self._info

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        starts_F = np.arange(self._info.num_frames) / self._info.fps
        index_N = index_at(starts_F, checked_times(times), SLACK)
        shape_of(len(index_N), self._info, self._limits)
        pixels_NHWC = self._decode(index_N.tolist())
        if out is None:
            return pixels_NHWC
        out[:] = pixels_NHWC
        return out

    def close(self) -> None:
        """The file belongs to the store."""


# Pictures to pixels


def decode_frames(
    indices: Sequence[int],
    shape: tuple[int, int],
    encoded: Callable[[int], bytes],
    where: str,
    name: str,
    limits: MediaLimits,
    is_raw: bool = False,
) -> np.ndarray:
    """Frames of a video at `indices`, in this order, each read and decoded once: uint8 (N, H, W, 3).

    shape: (H, W). `encoded(index)` gives a frame's bytes; `where` and `name`: the store and the video. With
    isolation all of them go to one child at once; raw ones are pixels already. MediaError where one is
    damaged, has another size, or all would take too much memory.
    """
    distinct = list(dict.fromkeys(indices))
    if (size := len(indices) * shape[0] * shape[1] * 3) > limits.max_decoded_bytes:
        raise MediaError(
            where, f"{len(indices)} frames take {size} bytes, the limit is {limits.max_decoded_bytes}"
        )
    if not distinct:
        return np.empty((0, *shape, 3), np.uint8)
    pieces = {f"frame {index} of {name!r}": encoded(index) for index in distinct}
    in_child = limits.isolation == "process"
    decode = _view if is_raw else _decode_in_child if in_child else _decode_here
    pixels_NHWC = decode(pieces, shape, where, limits)
    if len(distinct) == len(indices):
        return pixels_NHWC
    place = {index: row for row, index in enumerate(distinct)}
    return pixels_NHWC[[place[index] for index in indices]]


def _view(pieces: dict[str, bytes], shape: tuple[int, int], where: str, limits: MediaLimits) -> np.ndarray:
    for what, letters in pieces.items():
        if len(letters) != shape[0] * shape[1] * 3:
            raise MediaError(where, f"{what} has {len(letters)} bytes, not {shape[1]}x{shape[0]}")
    return np.frombuffer(bytearray().join(pieces.values()), np.uint8).reshape(-1, *shape, 3)


def _decode_here(
    pieces: dict[str, bytes], shape: tuple[int, int], where: str, limits: MediaLimits
) -> np.ndarray:
    out = np.empty((len(pieces), *shape, 3), np.uint8)
    for row, (what, letters) in enumerate(pieces.items()):
        out[row] = decoded(letters, shape, where, what, limits)
    return out


def _decode_in_child(
    pieces: dict[str, bytes], shape: tuple[int, int], where: str, limits: MediaLimits
) -> np.ndarray:
    head = json.dumps([shape, [[what, len(letters)] for what, letters in pieces.items()]]).encode()
    strip = b"".join([len(head).to_bytes(8), head, *pieces.values()])
    limits.check_memory(where, len(strip))
    fd = unnamed_file(len(strip))
    with open(fd, "r+b", closefd=False) as file:
        file.write(strip)
    with IsolatedReader(STRIP_READER, MediaFile(where, "pictures", len(strip), fd), limits) as reader:
        return reader.frames_at(range(len(pieces)))


class StripReader(Closing):
    """Pictures one behind the other as a video of one a second: what a decoding child makes of them."""

    def __init__(self, medium: MediaFile, limits: MediaLimits):
        """Takes the medium over."""
        self._limits, self._where = limits, medium.name
        with medium:
            strip = os.pread(medium.fd, medium.size, 0)
        first = 8 + int.from_bytes(strip[:8])
        self._shape, sizes = json.loads(strip[8:first])
        ends = first + np.cumsum([0, *(size for _, size in sizes)])
        self._pieces = {what: strip[a:b] for (what, _), (a, b) in zip(sizes, pairwise(ends), strict=True)}

    def probe(self) -> VideoInfo:
        count = len(self._pieces)
        return VideoInfo(self._where, float(count), count, 1.0, self._shape[1], self._shape[0], "pictures")

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        """All of them, in order."""
        out = np.empty((len(self._pieces), *self._shape, 3), np.uint8) if out is None else out
        for row, (what, letters) in enumerate(self._pieces.items()):
            out[row] = decoded(letters, tuple(self._shape), self._where, what, self._limits, in_memory)
        return out

    def close(self) -> None:
        self._pieces = {}


STRIP_READER = "quicksviewer.utils.stored_video:StripReader"


def in_memory(letters: bytes, limits: MediaLimits) -> Image.Image:
    """`load_image` of bytes for a child, which has been forbidden to make the unnamed file of the gate. What
    the gate asks of bytes is asked here."""
    limits.check_memory(BYTES_NAME, len(letters))
    kind = check_kind(BYTES_NAME, letters[:HEAD_BYTES], IMAGE_KINDS)
    with opened(_Letters(BYTES_NAME, kind, len(letters), letters), limits) as image:
        return to_rgb(image)


@dataclass(frozen=True)
class _Letters:
    """Bytes in the place of a MediaFile."""

    name: str
    kind: str
    size: int
    letters: bytes

    def reader(self) -> io.BytesIO:
        return io.BytesIO(self.letters)


def decoded(
    letters: bytes,
    shape: tuple[int, int],
    where: str,
    what: str,
    limits: MediaLimits,
    load: Callable[[bytes, MediaLimits], Image.Image] = load_image,
) -> np.ndarray:
    """An encoded frame as uint8 (H, W, 3). MediaError names `what` of the store `where` is damaged."""
    try:
        picture = np.asarray(load(letters, limits))
    except MediaError as error:
        raise MediaError(where, f"{what}: {error.reason}") from error
    if picture.shape[:2] != tuple(shape):
        found, expected = (f"{width}x{height}" for height, width in (picture.shape[:2], shape))
        raise MediaError(where, f"{what} is {found}, the video is {expected}")
    return picture
