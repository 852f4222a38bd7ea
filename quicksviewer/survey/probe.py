"""What one medium is: looked at once, its frames timed and counted but not decoded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quicksviewer.data.lengths import state_of
from quicksviewer.data.manifest import MEDIUM, VIDEO_KEYS, pack_counts, pack_times
from quicksviewer.utils.data_util import (
    MediaError,
    MediaLimits,
    VideoInfo,
    open_medium,
    open_video,
    plan_frames,
)
from quicksviewer.utils.file_hash import HASHES
from quicksviewer.utils.image import image_size
from quicksviewer.utils.media import IMAGE_KINDS, VIDEO_KINDS
from quicksviewer.utils.media_gate import DATA_URL, MediaFile
from quicksviewer.utils.packets import read_packets


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
        if not DATA_URL.match(getattr(path, "path", path)):  # one in its row changes with the row alone
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
    return {name: getattr(info, name) for name in VIDEO_KEYS} | {
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


def _hash(medium: MediaFile, settings: ProbeSettings) -> str | None:
    """None of frames of a store."""
    return HASHES[settings.hash](medium.fd, medium.size)
