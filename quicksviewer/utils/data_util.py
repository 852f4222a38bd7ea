"""Media from files to arrays: the one door for training, evaluation and chat.

open_video -> reader.probe() -> plan_frames -> reader.frames_at     in one call: read_video
load_image                                                         pictures
TSVReader, TSVWriter                                               the published store of decoded videos
"""

import os

import numpy as np

from quicksviewer.utils.frame_plan import FramePlan, plan_frames
from quicksviewer.utils.image import load_image
from quicksviewer.utils.media import VIDEO_KINDS, MediaError, MediaLimits
from quicksviewer.utils.media_gate import RootedPath, open_medium
from quicksviewer.utils.registry import load_target, lookup
from quicksviewer.utils.tsv import TSVReader, TSVWriter
from quicksviewer.utils.video import VideoInfo, VideoReader

__all__ = [
    "VIDEO_READERS",
    "FramePlan",
    "MediaError",
    "MediaLimits",
    "RootedPath",
    "TSVReader",
    "TSVWriter",
    "VideoInfo",
    "VideoReader",
    "load_image",
    "open_medium",
    "open_video",
    "plan_frames",
    "read_video",
]

VIDEO_READERS = {
    "av": "quicksviewer.utils.video_av:PyAVReader",
    "decord": "quicksviewer.utils.video_extra:DecordReader",
    "torchcodec": "quicksviewer.utils.video_extra:TorchCodecReader",
}
"""Decoder name to "module:class", called with (MediaFile, limits)."""


def open_video(
    ref: str | os.PathLike | bytes, decoder: str = "av", limits: MediaLimits | None = None
) -> VideoReader:
    """A reader of a video (a path, bytes or a data URL: see `open_medium`), to be used in a `with`.

    Raises MediaError for a file that cannot be used, ValueError for an unknown decoder, ModuleNotFoundError
    for one whose package is not installed.
    """
    reader = load_target(lookup(VIDEO_READERS, decoder, "video decoder"))
    limits = limits or MediaLimits()
    return reader(open_medium(ref, VIDEO_KINDS, limits), limits)


def read_video(
    path: str | os.PathLike,
    fps: float,
    max_frames: int,
    start: float | None = None,
    end: float | None = None,
    decoder: str = "av",
    limits: MediaLimits | None = None,
) -> tuple[np.ndarray, FramePlan]:
    """Frames of a clip, uint8 (N, H, W, 3) RGB, and the plan with their times. Raises as its parts do."""
    with open_video(path, decoder, limits) as video:
        plan = plan_frames(video.probe(), fps, max_frames, start, end)
        return video.frames_at(plan.times), plan
