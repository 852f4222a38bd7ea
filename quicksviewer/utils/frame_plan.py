"""Which moments of a video become frames: the only frame sampler there is.

A plan is made once, when a video is read, and goes with its frames: it says what was looked at, why, and who
decoded it, and can be kept beside results as JSON.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

from quicksviewer.utils.config import build, to_plain
from quicksviewer.utils.utils import get_logger
from quicksviewer.utils.video import SAMPLED, VideoInfo

logger = get_logger(__name__)
SLACK = 1e-9
"""Keeps a frame count from flipping on the last digits of a product of floats."""

Policy = Literal["rate", "even", "given"]
"""Moments at a rate; as many as allowed, evenly, because the rate gave more; those that a row names."""


@dataclass(frozen=True)
class FramePlan:
    """Moments to decode, in seconds from the first frame of the video, and the wishes that led to them."""

    times: tuple[float, ...]
    fps: float
    """The rate wished for, or that of the store where it has fewer frames; 0 where the moments were given."""
    max_frames: int
    start: float
    end: float
    """The clip [start, end) in seconds, resolved: inside the video."""
    policy: Policy = "rate"
    decoder: str = ""
    decoder_version: str = ""
    """Who read the video that the plan was made for, as in VideoInfo."""

    def __post_init__(self):
        if not 1 <= len(self.times) <= self.max_frames:
            raise ValueError(f"{len(self.times)} times do not fit into 1 to max_frames={self.max_frames}")
        given = self.policy == "given"
        if any(
            later < earlier or (later == earlier and not given) for earlier, later in pairwise(self.times)
        ):
            raise ValueError(f"times must increase, got {self.times}")
        if not given and not (self.start <= self.times[0] and self.times[-1] < self.end):
            raise ValueError(f"times {self.times} leave the clip [{self.start}, {self.end})")

    def to_json(self) -> str:
        """One line, from which `from_json` makes the same plan."""
        return json.dumps(to_plain(self))

    @classmethod
    def from_json(cls, text: str) -> "FramePlan":
        """ValueError where the text is no plan."""
        return build(cls, json.loads(text), "frame plan")


def plan_frames(
    info: VideoInfo, fps: float, max_frames: int, start: float | None = None, end: float | None = None
) -> FramePlan:
    """Moments at `fps` in the clip [start, end), each in the middle of its interval: 0.5/fps, 1.5/fps, ...

    A clip shorter than that gives its middle. More than `max_frames` moments become exactly `max_frames`, the
    middles of equal parts of the clip. An `end` behind the end of the video means the end of the video. A
    store of frames is looked at with its own rate at most: more moments would show a frame twice.
    Raises ValueError on a rate, a number of frames or a clip that makes no sense.
    """
    if not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps must be a positive number, got {fps}")
    if max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    if info.decoder in SAMPLED and fps > info.fps:
        _say_own_rate(info.path.partition("::")[0], info.fps, fps)
        fps = info.fps
    first, last = _clip(info, start, end)
    length = last - first
    count = math.ceil(length * fps - 0.5 - SLACK)
    if count < 1:
        times = (first + length / 2,)
    elif count <= max_frames:
        times = tuple(first + (i + 0.5) / fps for i in range(count))
    else:
        times = tuple(first + (i + 0.5) * length / max_frames for i in range(max_frames))
    policy = "rate" if count <= max_frames else "even"
    return FramePlan(times, fps, max_frames, first, last, policy, info.decoder, info.decoder_version)


@cache
def _say_own_rate(store: str, own: float, wished: float) -> None:
    """Once for each store."""
    logger.warning(
        "%s holds %g frames a second; %g are asked for, and it is read at its own rate", store, own, wished
    )


def plan_given(
    info: VideoInfo,
    times: Sequence[float],
    max_frames: int = sys.maxsize,
    start: float | None = None,
    end: float | None = None,
) -> FramePlan:
    """Those of the given moments that lie in [start, end), thinned out evenly to `max_frames`.

    Raises ValueError where none is left or they go back in time.
    """
    inside = [t for t in times if (start is None or t >= start) and (end is None or t < end)]
    if not inside:
        raise ValueError(f"{info.path}: none of the {len(times)} timestamps lies between {start} and {end} s")
    kept = min(max_frames, len(inside))
    chosen = tuple(float(inside[int((i + 0.5) * len(inside) / kept)]) for i in range(kept))
    clip = (start or 0.0, info.duration if end is None else end)
    return FramePlan(chosen, 0.0, max_frames, *clip, "given", info.decoder, info.decoder_version)


def _clip(info: VideoInfo, start: float | None, end: float | None) -> tuple[float, float]:
    first = 0.0 if start is None else float(start)
    last = info.duration if end is None else float(end)
    if not 0 <= first < info.duration:
        raise ValueError(f"start={start} is not inside the {info.duration} s of {info.path}")
    if not first < last:
        raise ValueError(f"start={first} must come before end={last}")
    return first, min(last, info.duration)
