"""Which moments of a video become frames: the only frame sampler there is."""

import math
from dataclasses import dataclass

from quicksviewer.utils.video import VideoInfo

SLACK = 1e-9
"""Keeps a frame count from flipping on the last digits of a product of floats."""


@dataclass(frozen=True)
class FramePlan:
    """Moments to decode, in seconds from the first frame of the video, and the wishes that led to them."""

    times: tuple[float, ...]
    fps: float
    max_frames: int
    start: float
    end: float
    """The clip [start, end) in seconds, resolved: inside the video."""

    def __post_init__(self):
        if not 1 <= len(self.times) <= self.max_frames:
            raise ValueError(f"{len(self.times)} times do not fit into 1 to max_frames={self.max_frames}")
        if any(later <= earlier for earlier, later in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"times must increase, got {self.times}")
        if not (self.start <= self.times[0] and self.times[-1] < self.end):
            raise ValueError(f"times {self.times} leave the clip [{self.start}, {self.end})")


def plan_frames(
    info: VideoInfo, fps: float, max_frames: int, start: float | None = None, end: float | None = None
) -> FramePlan:
    """Moments at `fps` in the clip [start, end), each in the middle of its interval: 0.5/fps, 1.5/fps, ...

    A clip shorter than that gives its middle. More than `max_frames` moments become exactly `max_frames`, the
    middles of equal parts of the clip. An `end` behind the end of the video means the end of the video.
    Raises ValueError on a rate, a number of frames or a clip that makes no sense.
    """
    if not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps must be a positive number, got {fps}")
    if max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    first, last = _clip(info, start, end)
    length = last - first
    count = math.ceil(length * fps - 0.5 - SLACK)
    if count < 1:
        times = (first + length / 2,)
    elif count <= max_frames:
        times = tuple(first + (i + 0.5) / fps for i in range(count))
    else:
        times = tuple(first + (i + 0.5) * length / max_frames for i in range(max_frames))
    return FramePlan(times, fps, max_frames, first, last)


def _clip(info: VideoInfo, start: float | None, end: float | None) -> tuple[float, float]:
    first = 0.0 if start is None else float(start)
    last = info.duration if end is None else float(end)
    if not 0 <= first < info.duration:
        raise ValueError(f"start={start} is not inside the {info.duration} s of {info.path}")
    if not first < last:
        raise ValueError(f"start={first} must come before end={last}")
    return first, min(last, info.duration)
