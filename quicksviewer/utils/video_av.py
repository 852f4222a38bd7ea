"""The video reader on PyAV: exact frames by forward walks, jumping over gaps to key frames.

Time inside is counted in ticks, the integer unit of the stream. `_shown` is the frame on screen.
"""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from quicksviewer.utils.container import codec_of, open_container, pick_stream, second_container
from quicksviewer.utils.media import MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile
from quicksviewer.utils.video import MAX_THREADS, Closing, VideoInfo, check_info, checked_times, room_for
from quicksviewer.utils.walk import Shot, Walk

MIN_JUMP_FRAMES = 3
"""Shorter gaps are decoded: a jump empties the decoder."""
TIME_SLACK = Fraction(1, 10**6)
"""Seconds by which a time may miss the start of a frame through rounding."""
END_SLACK = 1
"""Seconds at the end that may be missing before a video counts as cut short."""


class PyAVReader(Closing):
    """Reads one video file. See VideoReader."""

    def __init__(self, medium: MediaFile, limits: MediaLimits | None = None):
        """Takes the file over, decodes its first frame. MediaError when that fails or a limit is passed."""
        self._medium, self.path, self._kind = medium, medium.name, medium.kind
        self._limits = limits or MediaLimits()
        self._container = self._walk = None
        self._wanted, self._decoded = None, 0
        self._hidden: set[int] = set()  # ticks of packets that gave no picture though none was left out
        self._converter = VideoReformatter()
        try:
            self._open()
            self._first = self._shown
            self._info = self._measure()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def load():
        """What it needs, which is always there."""
        return av

    def probe(self) -> VideoInfo:
        return self._info

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        ticks = [self._tick_of(second) for second in checked_times(times)]
        pixels_NHWC = room_for(len(ticks), self._info, self._limits) if out is None else out
        self._wanted = sorted(ticks)
        if self._walk is not None:
            self._walk.wanted = self._wanted
        done = None
        for place in sorted(range(len(ticks)), key=ticks.__getitem__):
            frame = self._move_to(ticks[place])
            if done is not None and done[0] is frame:
                pixels_NHWC[place] = pixels_NHWC[done[1]]
            else:
                pixels_NHWC[place] = self._pixels(frame)
                done = frame, place
        return pixels_NHWC

    @property
    def decoded(self) -> int:
        """Frames that were decoded so far, those that were only on the way to others too."""
        return self._decoded + (self._walk.decoded if self._walk is not None else 0)

    def close(self) -> None:
        self._let_go()
        self._medium.close()

    def _let_go(self) -> None:
        self._decoded = self.decoded
        self._walk = self._shown = self._stream = None
        if self._container is not None:
            self._container.close()
            self._container = None

    # Opening and measuring

    def _open(self) -> None:
        """Stand on the first frame of a freshly opened container."""
        self._let_go()
        with self._errors("cannot be opened"):
            self._open_stream()
            if self._kind == "matroska":
                self._load_cues()
        if self._start_walk(after_jump=False) is None:
            raise MediaError(self.path, f"holds a {self._codec()} stream, but no frame in it can be decoded")

    def _open_stream(self) -> None:
        self._container = open_container(self._medium)
        self._stream = pick_stream(self._container, self._medium, self._limits)
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = MAX_THREADS

    def _load_cues(self) -> None:
        """A matroska file reads its list of key frames at the first jump: jump to where we are."""
        try:
            self._container.seek(0)
        except av.FFmpegError:
            self._container.close()
            self._open_stream()

    def _measure(self) -> VideoInfo:
        frames, seconds = self._stream.frames, self._stated_seconds()
        if seconds is None or seconds <= 0:
            frames, seconds = self._last_packets(from_start=True)
        rate = self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
        if not rate:
            rate = max(frames, 1) / seconds
        height, width = self._pixels(self._first.frame).shape[:2]
        frames = frames or max(1, round(seconds * rate))
        size, who = (width, height), (self._codec(), "av", av.__version__)
        info = VideoInfo(self.path, float(seconds), frames, float(rate), *size, *who)
        return check_info(info, self._limits)

    def _stated_seconds(self) -> Fraction | None:
        """Length of the video as its file states it, if it does."""
        stream = self._stream
        if stream.duration and self._kind == "mp4" and not self._is_steady():
            return self._last_packets()[1]
        if stream.duration:
            return stream.duration * stream.time_base
        if self._kind == "matroska" and (end := _clock(stream.metadata.get("DURATION", ""))):
            return end - self._first.tick * stream.time_base  # matroska states the end, not the length
        if self._container.duration and self._first.tick == 0:
            return Fraction(self._container.duration, av.time_base)
        return None

    def _is_steady(self) -> bool:
        """Whether the length that an mp4 states is true.

        It adds up decoding times. At an irregular rate these end well before the frames do, when frames are
        decoded in another order than shown.
        """
        entries = self._stream.index_entries
        if len(entries) < 3 or not self._stream.codec_context.has_b_frames:
            return True
        first, second = (entry.timestamp for entry in entries[:2])
        before, last = (entry.timestamp for entry in entries[-2:])
        step = (last - first) / (len(entries) - 1)
        return abs(second - first - step) <= 1 and abs(last - before - step) <= 1

    def _last_packets(self, from_start: bool = False) -> tuple[int, Fraction]:
        """Number of packets from the last key frame on, or in all, and the second at which they end.

        They are read, not decoded.
        """
        ticks, end, index = [], 0, self._stream.index_entries
        with self._errors("cannot be measured"), second_container(self._medium) as container:
            stream = container.streams[self._stream.index]
            if not from_start and (key := index.search_timestamp(2**62, backward=True)) >= 0:
                container.seek(index[key].timestamp, stream=stream)
            for packet in container.demux(stream):
                if (tick := packet.dts if packet.pts is None else packet.pts) is not None:
                    ticks.append(tick)
                    end = max(end, tick + (packet.duration or 0))
        if not ticks:
            raise MediaError(self.path, "cannot be measured: its packets have no times")
        spread = max(ticks) - min(ticks)
        if end <= max(ticks):  # no packet tells how long it lasts: the last one lasts as long as the average
            rate = self._stream.guessed_rate or 25
            end = max(ticks) + (spread / (len(ticks) - 1) if spread else 1 / (rate * self._stream.time_base))
        return len(ticks), Fraction(end - self._first.tick) * self._stream.time_base

    # Walking

    def _start_walk(self, after_jump: bool, wanted: list[int] | None = None) -> Shot | None:
        """Take the first frame from where the container stands; None when there is none."""
        self._decoded = self.decoded
        has_times = self._kind != "avi"
        self._walk = Walk(self._container, self._stream, self.path, has_times, after_jump, self._hidden)
        self._walk.wanted = wanted
        self._shown = self._walk.pop()
        return self._shown

    def _move_to(self, tick: int):
        """The frame on screen at a tick."""
        if self._container is None:
            raise MediaError(self.path, "the reader is closed")
        if tick < self._shown.tick:
            if self._shown.tick > self._first.tick:
                self._jump(tick, self._wanted)
        elif self._key_before(tick) > self._shown.tick + self._ticks(MIN_JUMP_FRAMES / self._info.fps):
            self._jump(tick, self._wanted)
        while self._shown.until <= tick:
            ahead = self._walk.peek()
            if ahead is not None and ahead.tick <= tick:
                self._shown = self._walk.pop()
            elif self._walk.wanted is not None:  # nobody had asked for it then, or it was lost with others
                self._jump(tick, wanted=None)
            else:
                self._pass_hidden()
        if self._shown.until == math.inf:
            self._check_end()
        return self._shown.frame

    def _pass_hidden(self) -> None:
        """The packet behind the frame on screen gave no picture: VP8 has such. Many in a row are damage."""
        first = min((tick for tick in self._hidden if tick > self._shown.tick), default=self._shown.until)
        if self._shown.until - first > self._ticks(END_SLACK):
            self._hidden.clear()
            since = float((first - self._first.tick) * self._stream.time_base)
            raise MediaError(self.path, f"damaged: nothing can be decoded from {since:.2f} s on")
        self._hidden.add(self._shown.until)
        self._shown = self._shown._replace(until=self._walk.after(self._shown.until))

    def _key_before(self, tick: int) -> float:
        """Tick of the last known key frame at or before a tick, by the file's index; -inf when none is known.

        For mp4 it is the decoding time, a little before the presentation time.
        """
        if self._kind == "avi":
            return -math.inf  # its index has no presentation times: decode from the start
        entries = self._stream.index_entries
        place = entries.search_timestamp(tick, backward=True)
        return -math.inf if place < 0 else entries[place].timestamp

    def _jump(self, tick: int, wanted: list[int] | None) -> None:
        """Stand on the last key frame shown at or before a tick, or on the first frame of the file."""
        aim = tick
        while aim > self._first.tick:
            with self._errors("damaged"):
                self._container.seek(aim, stream=self._stream)
            if (first := self._start_walk(True, wanted)) is not None and first.tick <= tick:
                return
            aim = min(self._key_before(aim) - 1, aim - 1)
        self._open()

    def _check_end(self) -> None:
        """The walk has ended; frames that the index lists much later are missing."""
        entries = self._stream.index_entries
        listed = entries[-1].timestamp if len(entries) else self._shown.tick
        if listed > self._shown.tick + self._ticks(END_SLACK):
            ended = float((self._shown.tick - self._first.tick) * self._stream.time_base)
            missing = float((listed - self._shown.tick) * self._stream.time_base)
            raise MediaError(
                self.path, f"damaged: decoding ends at {ended:.2f} s, {missing:.2f} s are missing"
            )

    # Small parts

    def _tick_of(self, second: float) -> int:
        """The tick of a time after the first frame, rounding forgiven."""
        return self._first.tick + math.floor((Fraction(second) + TIME_SLACK) / self._stream_base())

    def _stream_base(self) -> Fraction:
        if self._stream is None:
            raise MediaError(self.path, "the reader is closed")
        return self._stream.time_base

    def _ticks(self, seconds: float) -> float:
        return float(seconds / self._stream_base())

    def _codec(self) -> str:
        return codec_of(self._stream)

    def _pixels(self, frame) -> np.ndarray:
        """RGB of a frame, upright: uint8 (H, W, 3). A stream that changes its size is scaled to its first."""
        first = self._first.frame
        rgb = self._converter.reformat(
            frame, width=first.width, height=first.height, format="rgb24", threads=1
        )
        return _upright(rgb.to_ndarray(), _display_matrix(first))

    @contextmanager
    def _errors(self, doing: str):
        """Errors of ffmpeg become MediaError."""
        try:
            yield
        except av.FFmpegError as error:
            raise MediaError(self.path, f"{doing}: {error.strerror}") from error


def _clock(text: str) -> Fraction | None:
    """Seconds of "HH:MM:SS.fraction"; None when it is something else."""
    hours, _, rest = text.partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return None


def _display_matrix(frame) -> tuple[int, int, int, int]:
    """(a, b, c, d): the pixel (x, y) is shown at (ax + cy, bx + dy). Scale does not matter here."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            values = np.frombuffer(bytes(data), np.int32)
            return tuple(int(values[i]) for i in (0, 1, 3, 4))
    return 1, 0, 0, 1


def _upright(pixels_HWC: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror a picture as its display matrix says, by quarter turns."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        pixels_HWC, right, down = pixels_HWC.swapaxes(0, 1), c, b
    else:
        right, down = a, d
    if right < 0:
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC[::-1] if down < 0 else pixels_HWC
