"""A video whose frames are stored as pictures, behind the calls of a VideoReader."""

from collections.abc import Callable, Sequence

import numpy as np

from quicksviewer.utils.image import load_image
from quicksviewer.utils.media import MediaError, MediaLimits
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


def decode_each(
    indices: Sequence[int], shape: tuple[int, int], decode: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Frames at `indices`, in this order, each decoded once: uint8 (N, H, W, 3); shape is (H, W).

    `decode(index)` raises MediaError for a frame that is damaged or not of this shape.
    """
    pixels_NHWC = np.empty((len(indices), *shape, 3), np.uint8)
    done: dict[int, int] = {}
    for place, index in enumerate(indices):
        if index in done:
            pixels_NHWC[place] = pixels_NHWC[done[index]]
        else:
            pixels_NHWC[place], done[index] = decode(index), place
    return pixels_NHWC


def decoded(letters: bytes, shape: tuple[int, int], where: str, what: str, limits: MediaLimits) -> np.ndarray:
    """An encoded frame as uint8 (H, W, 3). MediaError names `what` of the store `where` is damaged."""
    try:
        picture = np.asarray(load_image(letters, limits))
    except MediaError as error:
        raise MediaError(where, f"{what}: {error.reason}") from error
    if picture.shape[:2] != tuple(shape):
        found, expected = (f"{width}x{height}" for height, width in (picture.shape[:2], shape))
        raise MediaError(where, f"{what} is {found}, the video is {expected}")
    return picture
