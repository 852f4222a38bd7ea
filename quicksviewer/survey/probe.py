"""What one medium is: looked at once, its frames timed and counted but not decoded."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quicksviewer.data.lengths import state_of
from quicksviewer.data.manifest import MEDIUM, pack_counts, pack_times
from quicksviewer.utils.data_util import (
    MediaError,
    MediaLimits,
    VideoInfo,
    open_medium,
    open_video,
    plan_frames,
)
from quicksviewer.utils.image import image_size
from quicksviewer.utils.media import IMAGE_KINDS, VIDEO_KINDS
from quicksviewer.utils.media_gate import MediaFile
from quicksviewer.utils.packets import read_packets

PIECE = 1 << 16
"""Bytes that a sampled hash takes at the start, in the middle and at the end of a file."""
BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How media are looked at. `fps`, `max_frames`: the frame plan whose cost is told."""

    decoder: str = "av"
    fps: float = 1.0
    max_frames: int = 420
    hash: str = "sampled"
    seconds: float = 60
    """How long one call of a decoder may take before it is killed."""

    def limits(self) -> MediaLimits:
        return MediaLimits(isolation="process", decode_seconds=self.seconds)


def probe(path: str, kind: str, settings: ProbeSettings) -> dict:
    """The columns MEDIUM of one medium; of one that cannot be used only `error` says something."""
    known = dict.fromkeys(MEDIUM)
    try:
        known |= PROBES[kind](path, settings)
        known["bytes"], known["changed"] = state_of(path)
        return known
    except MediaError as error:
        return dict.fromkeys(MEDIUM) | {"error": str(error)}


def _probe_image(path: str, settings: ProbeSettings) -> dict:
    limits = settings.limits()
    width, height = image_size(path, limits)
    with open_medium(path, IMAGE_KINDS, limits) as medium:
        told = {"codec": medium.kind, "hash": _hash(medium, settings)}
    return told | {"width": width, "height": height, "decode_megapixels": width * height / 1e6}


def _probe_video(path: str, settings: ProbeSettings) -> dict:
    limits = settings.limits()
    with open_video(path, settings.decoder, limits) as reader:
        info = reader.probe()
    if hasattr(path, "open_frames") and path.open_frames(limits) is not None:
        seconds, is_key = np.arange(info.num_frames) / info.fps, np.ones(info.num_frames, bool)
        digest = None
    else:
        packets = read_packets(path, limits)
        seconds, is_key = packets.seconds, packets.is_key
        with open_medium(path, VIDEO_KINDS, limits) as medium:
            digest = _hash(medium, settings)
    names = ("duration", "fps", "num_frames", "codec", "width", "height")
    return {name: getattr(info, name) for name in names} | {
        "frame_times": pack_times(seconds),
        "key_frames": pack_counts(np.flatnonzero(is_key)),
        "decode_megapixels": _decoded(info, seconds, is_key, settings) * info.width * info.height / 1e6,
        "hash": digest,
    }


PROBES: dict[str, Callable[[str, ProbeSettings], dict]] = {"image": _probe_image, "video": _probe_video}


def _decoded(info: VideoInfo, seconds_F: np.ndarray, is_key_F: np.ndarray, settings: ProbeSettings) -> int:
    """Frames that are decoded for the frame plan of all of the video: from each frame back to where the last
    one ended, or to a key frame."""
    times = plan_frames(info, settings.fps, settings.max_frames).times
    index_N = np.searchsorted(seconds_F, np.array(times) + 1e-6, side="right") - 1
    index_N = np.unique(index_N.clip(0, len(seconds_F) - 1))
    keys = np.flatnonzero(is_key_F)
    keys = keys if len(keys) and keys[0] == 0 else np.concatenate([[0], keys])
    last_key_N = keys[np.searchsorted(keys, index_N, side="right") - 1]
    behind_N = np.concatenate([[-1], index_N[:-1]])
    return int((index_N - np.maximum(last_key_N - 1, behind_N)).sum())


# Hashes


def _hash(medium: MediaFile, settings: ProbeSettings) -> str | None:
    return HASHES[settings.hash](medium)


def _sampled(medium: MediaFile) -> str:
    """sha256 of the size and of three pieces: tells files apart at the cost of three reads."""
    digest = hashlib.sha256(str(medium.size).encode())
    for place in sorted({0, max(0, (medium.size - PIECE) // 2), max(0, medium.size - PIECE)}):
        digest.update(os.pread(medium.fd, PIECE, place))
    return f"sampled:{digest.hexdigest()}"


def _whole(medium: MediaFile) -> str:
    digest = hashlib.sha256()
    for place in range(0, medium.size, BLOCK):
        digest.update(os.pread(medium.fd, BLOCK, place))
    return f"sha256:{digest.hexdigest()}"


HASHES: dict[str, Callable[[MediaFile], str | None]] = {
    "sampled": _sampled,
    "sha256": _whole,
    "none": lambda medium: None,
}
"""Value of `--hash` -> the hash of an open file, after its name; frames of a store have none."""
