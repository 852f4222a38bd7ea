"""What the encoder found hard: sizes and key frames of a video's packets, read without decoding a frame.

A packet that needs many bits shows much that the frames before did not, and encoders put key frames where
scenes change. So the container alone is a prior for where a video may be cut.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from quicksviewer.utils.container import open_container, pick_stream
from quicksviewer.utils.media import VIDEO_KINDS, MediaError, MediaLimits
from quicksviewer.utils.media_gate import open_medium

KEY_FRAME_BONUS = 1.0
"""Log score of a key frame after the first. Regular key frames say nothing, so it is small beside a cut's."""


@dataclass(frozen=True)
class Packets:
    """The packets of a video stream in the order of display."""

    seconds: np.ndarray
    """When each frame appears, from the first frame of the video."""
    sizes: np.ndarray
    """Bytes."""
    is_key: np.ndarray


def read_packets(path: str | os.PathLike, limits: MediaLimits | None = None) -> Packets:
    """The packets of the file's best video stream. MediaError where it has none or cannot be read."""
    limits = limits or MediaLimits()
    try:
        with open_medium(path, VIDEO_KINDS, limits) as medium, open_container(medium) as container:
            stream = pick_stream(container, medium, limits)
            rows = [
                (packet.pts, packet.size, packet.is_keyframe)
                for packet in container.demux(stream)
                if packet.pts is not None and packet.size
            ]
            base = stream.time_base
    except (av.FFmpegError, OSError) as error:
        raise MediaError(path, f"its packets cannot be read: {error}") from error
    if not rows:
        raise MediaError(path, "its video stream has no packets")
    ticks, sizes, keys = (np.array(column) for column in zip(*sorted(rows), strict=True))
    seconds = (ticks - ticks[0]) * float(Fraction(base))
    return Packets(seconds, sizes.astype(np.int64), keys.astype(bool))


def packet_scores(packets: Packets, times: Sequence[float]) -> np.ndarray:
    """How much is new in each sampled frame: float64 (N,), the first 0.

    The log of the largest packet since the sample before, against the median packet that is no key frame; for
    a key frame against the median key frame, with a bonus.
    """
    typical = {key: np.median(packets.sizes[packets.is_key == key]) for key in set(packets.is_key.tolist())}
    expected = np.where(packets.is_key, typical.get(True, 1.0), typical.get(False, 1.0))
    score = np.log(np.maximum(packets.sizes, 1) / np.maximum(expected, 1)) + KEY_FRAME_BONUS * packets.is_key
    place = np.searchsorted(packets.seconds, np.asarray(times) + 1e-6, side="right")
    spans = zip(place[:-1], place[1:], strict=True)
    news = [score[a:b].max() if b > a else -np.inf for a, b in spans]
    return np.array([0.0, *news])


def key_frame_samples(packets: Packets, times: Sequence[float]) -> list[int]:
    """Sampled frames with a key frame since the sample before; the first is none."""
    place = np.searchsorted(packets.seconds, np.asarray(times) + 1e-6, side="right")
    return [i for i in range(1, len(times)) if packets.is_key[place[i - 1] : place[i]].any()]
