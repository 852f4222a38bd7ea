"""What the encoder found hard: sizes and key frames of a video's packets, read without decoding a frame.

A packet that needs many bits shows much that the frames before did not, and encoders put key frames where
scenes change. So the container alone is a prior for where a video may be cut.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from quicksviewer.utils.container import codec_of, open_container, pick_stream
from quicksviewer.utils.data_util import READER_OF
from quicksviewer.utils.media import VIDEO_KINDS, MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile, open_medium
from quicksviewer.utils.video import Closing, VideoInfo

PACKET_READER = "quicksviewer.utils.packets:PacketReader"
PACKET = np.dtype([("second", "<f8"), ("size", "<i8"), ("is_key", "?")])
"""How the child tells of one: the columns of Packets."""
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
    """The packets of the file's best video stream, read in a child unless `limits` say otherwise. MediaError
    where it has none, more than it may have frames, or cannot be read."""
    limits = limits or MediaLimits(isolation="process")
    medium = open_medium(path, VIDEO_KINDS, limits)
    with READER_OF[limits.isolation](PACKET_READER, medium, limits) as reader:
        found = np.frombuffer(reader.make({}, limits.max_frames * PACKET.itemsize)[1], PACKET)
    return Packets(*(found[name].copy() for name in PACKET.names))


class PacketReader(Closing):
    """`make({})` gives the packets, as PACKET."""

    def __init__(self, medium: MediaFile, limits: MediaLimits):
        """Takes the file over. MediaError where it has no video stream."""
        self._medium, self._container = medium, None
        try:
            with _errors(medium):
                self._container = open_container(medium)
            self._stream = pick_stream(self._container, medium, limits)
        except BaseException:
            self.close()
            raise

    def probe(self) -> VideoInfo:
        """Its size and codec; nothing else is looked at."""
        codec = self._stream.codec_context
        return VideoInfo(self._medium.name, 1.0, 1, 1.0, codec.width, codec.height, codec_of(self._stream))

    def make(self, said: dict, room: int) -> tuple[None, bytes]:
        """Packets in at most `room` bytes. MediaError where there are none, or too many."""
        most = room // PACKET.itemsize
        with _errors(self._medium):
            rows = sorted(itertools.islice(self._packets(), most + 1))
        if not rows:
            raise MediaError(self._medium.name, "its video stream has no packets")
        if len(rows) > most:
            raise MediaError(self._medium.name, f"has more than {most} packets, the limit of frames")
        found = np.empty(len(rows), PACKET)
        ticks, found["size"], found["is_key"] = (np.array(column) for column in zip(*rows, strict=True))
        found["second"] = (ticks - ticks[0]) * float(Fraction(self._stream.time_base))
        return None, found.tobytes()

    def _packets(self) -> Iterator[tuple[int, int, bool]]:
        for packet in self._container.demux(self._stream):
            if packet.pts is not None and packet.size:
                yield packet.pts, packet.size, packet.is_keyframe

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = self._stream = None
        self._medium.close()


@contextmanager
def _errors(medium: MediaFile):
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise MediaError(medium.name, f"its packets cannot be read: {error}") from error


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
