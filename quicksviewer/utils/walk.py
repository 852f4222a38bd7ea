"""A walk through a video: packets in, frames out in the order in which they are shown, no more than needed.

Times are ticks, the integer unit of the stream. Looking some packets ahead tells until when each frame is on
screen before it is decoded. So a frame that nobody asked for and no other frame refers to is left out.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Container, Iterator
from typing import NamedTuple

import av

from quicksviewer.utils.container import codec_of
from quicksviewer.utils.media import MediaError

LOOK_AHEAD = 24
"""Packets: more than the 16 frames by which H.264 and HEVC may shift a frame."""

SKIPPABLE = frozenset({"h264", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9"})
"""Codecs in which a frame that is marked so is referred to by none. In HEVC higher layers may refer to it."""


class Shot(NamedTuple):
    """A decoded frame, on screen from `tick` until another one is."""

    tick: int
    frame: av.VideoFrame
    until: float


class Walk:
    """Frames of a stream from where its container stands."""

    def __init__(
        self, container, stream, name: str, has_times: bool, after_jump: bool, hidden: Container[int] = ()
    ):
        """`has_times`: its packets say when they are shown (those of AVI do not).

        `after_jump`: it begins at a key frame amid the video; frames that need others from before it are left
        out. `hidden`: ticks of packets that are known to hold no picture.
        """
        self._container, self._stream, self._name = container, stream, name
        self._context, self._may_skip = stream.codec_context, codec_of(stream) in SKIPPABLE and has_times
        self._lowest, self._hidden = None if after_jump else -math.inf, hidden
        self._known, self._skipped = [], []  # ticks, sorted, from the frame before the next one on
        self._shots = self._looking_ahead() if has_times else self._one_behind()
        self._next: Shot | None = None
        self.wanted: list[int] | None = None
        """Sorted ticks of the frames that are asked for; None: all are. What lies behind them is decoded."""
        self.decoded = 0
        """Frames that were decoded so far."""

    def peek(self) -> Shot | None:
        """The next frame, which stays the next one; None at the end. MediaError where it is damaged."""
        if self._next is None:
            try:
                self._next = next(self._shots, None)
            except av.FFmpegError as error:
                raise MediaError(self._name, f"damaged: {error.strerror}") from error
        return self._next

    def pop(self) -> Shot | None:
        """The next frame. Raises as `peek`."""
        shot, self._next = self.peek(), None
        return shot

    def after(self, tick: int) -> float:
        """The tick at which the frame of a tick leaves the screen; infinite for the last."""
        place = bisect_right(self._known, tick)
        return self._known[place] if place < len(self._known) else math.inf

    # Packets that say when they are shown

    def _looking_ahead(self) -> Iterator[Shot]:
        previous = None
        for packet in self._packets():
            self._choose(packet.pts)
            for frame in packet.decode():
                if None not in (frame.pts, previous) and frame.pts < previous:
                    continue  # the decoder gave it too late: another one is on screen by now
                tick = self._tick(frame.pts, frame, previous)
                self._forget(tick, previous)
                previous = tick
                if tick >= self._lowest:
                    self._check(frame, tick)
                    yield Shot(tick, frame, self.after(tick))

    def _packets(self) -> Iterator:
        """Packets in the order of decoding, each when those that come soon after it are known."""
        window = deque()
        for packet in self._container.demux(self._stream):
            if packet.pts is not None and not packet.is_discard and packet.pts not in self._hidden:
                insort(self._known, packet.pts)
            window.append(packet)
            if len(window) > LOOK_AHEAD:
                yield window.popleft()
        yield from window

    def _choose(self, tick: int | None) -> None:
        """Tell the decoder whether it may leave out the packet of this tick."""
        if tick is not None:
            self._lowest = tick if self._lowest is None else self._lowest
        needed = not self._may_skip or tick is None or self._is_wanted(tick)
        self._context.skip_frame = "DEFAULT" if needed else "NONREF"
        self.decoded += tick is not None
        if not needed:
            insort(self._skipped, tick)

    def _is_wanted(self, tick: int) -> bool:
        if self.wanted is None or not self.wanted or tick > self.wanted[-1]:
            return True
        return self.wanted[bisect_left(self.wanted, tick)] < self.after(tick)

    def _forget(self, tick: int, previous: int | None) -> None:
        """Note that the frame of a tick was not left out; drop what lies before the frame before it."""
        place = bisect_left(self._skipped, tick)
        if place < len(self._skipped) and self._skipped[place] == tick:
            del self._skipped[place]
        if previous is not None:
            gone = bisect_left(self._skipped, previous)
            self.decoded -= gone  # they were counted when they were sent
            del self._skipped[:gone], self._known[: bisect_left(self._known, previous)]

    # Packets that do not

    def _one_behind(self) -> Iterator[Shot]:
        """The tick of a frame is that of its decoding; the next frame tells until when it is on screen."""
        held, previous = None, None
        for packet in self._container.demux(self._stream):
            for frame in packet.decode():
                self.decoded += 1
                previous = self._tick(frame.dts, frame, previous)
                self._check(frame, previous)
                if held is not None:
                    yield Shot(*held, previous)
                held = previous, frame
        if held is not None:
            yield Shot(*held, math.inf)

    # Both

    def _tick(self, tick: int | None, frame, previous: int | None) -> int:
        """The tick of a frame, never before that of the previous one: guessed times jump back and forth."""
        if tick is None:
            tick = 0 if previous is None else previous + (frame.duration or 1)
        return tick if previous is None else max(tick, previous)

    def _check(self, frame, tick: int) -> None:
        if frame.is_corrupt:
            raise MediaError(self._name, f"damaged at {float(tick * self._stream.time_base):.2f} s")
