"""Media from files to arrays: the one door for training, evaluation and chat.

open_video -> reader.probe() -> plan_frames -> reader.frames_at     in one call: read_video
load_image, image_size                                             pictures
TSVReader, TSVWriter                                               the published store of decoded videos
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata

import numpy as np

from quicksviewer.utils.decode_pool import IsolatedReader
from quicksviewer.utils.frame_plan import FramePlan, plan_frames, plan_given
from quicksviewer.utils.image import image_size, load_image
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
    "decoder_version",
    "image_size",
    "in_chunks",
    "load_image",
    "open_medium",
    "open_video",
    "plan_frames",
    "plan_given",
    "read_video",
    "why_unusable",
]

VIDEO_READERS = {
    "av": "quicksviewer.utils.video_av:PyAVReader",
    "decord": "quicksviewer.utils.video_extra:DecordReader",
    "torchcodec": "quicksviewer.utils.video_extra:TorchCodecReader",
}
"""Decoder name to "module:class", called with (MediaFile, limits)."""

CHUNK_BYTES = 2**26
"""Frames of a video that are in memory at its own size."""

READER_OF = {
    "none": lambda reader, medium, limits: load_target(reader)(medium, limits),
    "process": IsolatedReader,
}
"""Isolation -> function (reader's "module:class", MediaFile, limits) that gives the reader."""


def open_video(
    ref: str | os.PathLike | bytes, decoder: str = "av", limits: MediaLimits | None = None
) -> VideoReader:
    """A reader of a video, to be used in a `with`: of a path, bytes or a data URL, or one in a store.

    `decoder` is for files; stores of frames have a way of their own.
    Raises MediaError for a file that cannot be used, ValueError for an unknown decoder, ModuleNotFoundError
    for one whose package is not installed, ImportError for one whose package does not load.
    """
    reader = lookup(VIDEO_READERS, decoder, "video decoder")
    limits = limits or MediaLimits()
    if hasattr(ref, "open_frames") and (frames := ref.open_frames(limits)) is not None:
        return frames
    return READER_OF[limits.isolation](reader, open_medium(ref, VIDEO_KINDS, limits), limits)


def why_unusable(decoder: str) -> str | None:
    """Why a decoder cannot be used on this machine; None where it can. ValueError for an unknown one."""
    try:
        load_target(lookup(VIDEO_READERS, decoder, "video decoder")).load()
    except ImportError as error:
        return str(error)
    return None


def decoder_version(decoder: str) -> str:
    """Versions of what decodes videos and pictures here: the same files give the same result with them."""
    found = {}
    for package in dict.fromkeys((decoder, "pillow")):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return " ".join(f"{package} {version}" for package, version in found.items())


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


def in_chunks(reader: VideoReader, times: Sequence[float]) -> Iterator[np.ndarray]:
    """The frames at these seconds, a few at a time: uint8 (n, H, W, 3) of at most CHUNK_BYTES, or one frame.

    For those who make frames smaller: a long video at its own size need not fit into memory.
    """
    info = reader.probe()
    size = max(1, CHUNK_BYTES // (info.height * info.width * 3))
    for begin in range(0, len(times), size):
        yield reader.frames_at(times[begin : begin + size])
