"""What every video reader has in common: the facts it tells, the calls it answers, the limits it keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quicksviewer.utils.media import MediaError, MediaLimits

MAX_THREADS = 2
"""Decoder threads of one reader: data workers run in parallel already."""
SAMPLED = ("tsv", "frames")
"""Stores in the place of a decoder: their frames were picked from a video, at a rate of their own."""


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video, as it is shown: width and height are those of the upright frames."""

    path: str
    duration: float
    """Seconds from the start of the first frame to the end of the last."""
    num_frames: int
    """As the container says it; where it is silent, counted or duration times fps."""
    fps: float
    """Average rate."""
    width: int
    height: int
    codec: str
    decoder: str = ""
    """Who says so, and decodes the frames: a row of VIDEO_READERS or a store of SAMPLED, and its version."""
    decoder_version: str = ""

    def __post_init__(self):
        for name in ("duration", "num_frames", "fps", "width", "height"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} of {self.path} must be positive, got {getattr(self, name)}")


class VideoReader(Protocol):
    """Reads one video. Also a context manager that closes it."""

    def probe(self) -> VideoInfo:
        """Facts about the video."""

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        """The frames on screen at these seconds after the first frame: uint8 (N, H, W, 3), RGB, upright.

        In the order asked, repetitions included. Before the start it is the first frame, behind the end the
        last. `out`: memory of this shape that they are written to.
        Raises MediaError when the video is damaged on the way, ValueError on a time that is no number.
        """

    def close(self) -> None:
        """Free the decoder and the file. May be called twice."""


class Closing:
    """Makes a reader a context manager."""

    BY_PATH = False
    """Whether it opens its medium by a path; the others take its descriptor."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def checked_times(times: Sequence[float]) -> np.ndarray:
    """Times as float64 (N,). Raises ValueError when one is no finite number."""
    seconds_N = np.asarray(times, dtype=np.float64)
    if seconds_N.ndim != 1 or not np.isfinite(seconds_N).all():
        raise ValueError(f"times must be a row of finite seconds, got {times}")
    return seconds_N


def check_info(info: VideoInfo, limits: MediaLimits) -> VideoInfo:
    """The info itself. Raises MediaError when the video is too large or too long."""
    limits.check_pixels(info.path, info.width, info.height)
    if info.duration > limits.max_seconds:
        raise MediaError(info.path, f"lasts {info.duration:.1f} s, the limit is {limits.max_seconds} s")
    if info.num_frames > limits.max_frames:
        raise MediaError(info.path, f"has {info.num_frames} frames, the limit is {limits.max_frames}")
    return info


def shape_of(count: int, info: VideoInfo, limits: MediaLimits) -> tuple[int, int, int, int]:
    """Shape of `count` frames: (count, H, W, 3). Raises MediaError when they would take too much memory."""
    size = count * info.height * info.width * 3
    if size > limits.max_decoded_bytes:
        wanted = f"{count} frames of {info.width}x{info.height} take {size} bytes"
        raise MediaError(info.path, f"{wanted}, the limit is {limits.max_decoded_bytes}")
    return count, info.height, info.width, 3


def room_for(count: int, info: VideoInfo, limits: MediaLimits) -> np.ndarray:
    """Memory for `count` frames: uint8 (count, H, W, 3), not filled. Raises MediaError beyond the limit."""
    return np.empty(shape_of(count, info, limits), np.uint8)


def index_at(starts_F: np.ndarray, seconds_N: np.ndarray, slack: float) -> np.ndarray:
    """Index of the last frame that starts at or before each time: int64 (N,)."""
    index_N = np.searchsorted(starts_F, seconds_N + slack, side="right") - 1
    return index_N.clip(0, len(starts_F) - 1)
