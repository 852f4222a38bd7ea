"""Decoding in children that can be killed: the same readers, behind a socket.

Each process has children of its own, started when first needed and kept while idle. A child that hangs,
crashes or eats memory is killed, its medium becomes a MediaError, and the next medium gets a new child.
Frames come through memory without a name, so that nothing is left behind however a process ends.
"""

import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing import util
from typing import Any

import numpy as np

from quicksviewer.utils.decode_child import Spent, receive, send
from quicksviewer.utils.media import DecoderLost, MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile, unnamed_file
from quicksviewer.utils.video import Closing, VideoInfo, check_info, checked_times, shape_of

MAX_IDLE = 2
"""Children that a process keeps for later."""
MAX_MEDIA = 2000
"""Media after which a child is replaced: decoders leak."""
START_SECONDS = 120
"""A child that has not said a word by then is broken; on a loaded machine imports take their time."""
KEPT = (
    *("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONUTF8", "VIRTUAL_ENV"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ"),
)
"""What a child gets of the environment; keys and tokens of the run are not for decoders."""
OWN_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""A child decodes and does no arithmetic: no pools of threads, whose stacks count as memory."""
CLOSE_SECONDS = 5.0
"""For letting go of a medium."""
LEAST_SECONDS = 1e-3
"""What a call gets when the time of its medium is used up: enough to find that out."""
SLOW_SIGNALS = (signal.SIGALRM, signal.SIGXCPU)


def environment() -> dict[str, str]:
    """What a child is started with. What can be imported here can be imported there: no start in another
    folder changes that."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    modules = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | OWN_THREADS | modules


class ChildDied(Exception):
    """str() says how."""


class DecodeChild:
    """A running child and the socket to it."""

    def __init__(self, reader: str):
        """`reader` is loaded as it starts. RuntimeError when it does not start, with what it printed."""
        self.media, self.is_sealed = 0, False
        self.channel, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "quicksviewer.utils.decode_child", str(other.fileno()), reader],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env=environment(),
            )
        try:
            self.given_up = self._hear(START_SECONDS)["ok"]
        except ChildDied as error:
            raise RuntimeError(f"the decoding child does not start: {error}; see its message above") from None

    def call(self, message: dict, seconds: float, memory: int, fds: Sequence[int] = ()) -> dict:
        """The answer to a message. Raises ChildDied when there is none in time; the child is gone then.

        `memory`: bytes beside the program's own, those of the descriptors among them.
        """
        self.tell(message, seconds, memory, fds)
        return self._hear(seconds)

    def tell(self, message: dict, seconds: float, memory: int, fds: Sequence[int] = ()) -> None:
        """Send a message that has no answer, or whose answer is heard later."""
        bounds = {"seconds": seconds, "memory": memory}
        try:
            self.channel.settimeout(seconds)
            send(self.channel, message | bounds, fds)
        except OSError as error:
            raise ChildDied(self._end(error)) from None

    def _hear(self, seconds: float) -> dict:
        try:
            if (heard := receive(self.channel, seconds)) is not None:
                return heard[0]
            raise ConnectionError("it is gone")
        except TimeoutError:
            self.kill()
            raise ChildDied("its decoder took too long") from None
        except (OSError, ValueError) as error:
            raise ChildDied(self._end(error)) from None

    def _end(self, error: Exception) -> str:
        """How the child ended, which it has or now does."""
        try:
            code = self.process.wait(timeout=1)  # it is about to end: its own end of the socket is closed
        except subprocess.TimeoutExpired:
            code = 0
        self.kill()
        if code >= 0:
            return f"its decoder ended ({error})"
        name = signal.Signals(-code).name
        return "its decoder took too long" if -code in SLOW_SIGNALS else f"its decoder crashed ({name})"

    def kill(self) -> None:
        """End the child now; it leaves no zombie."""
        self.channel.close()
        self.process.kill()
        self.process.wait()

    def retire(self) -> None:
        """Let an idle child end by itself, which it does when the socket closes."""
        self.channel.close()
        try:
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.kill()

    def disown(self) -> None:
        """In a process that was forked: the child is another one's."""
        self.channel.close()
        self.process.returncode = 0


# The children of this process


class Pool:
    """Children that wait for work. One that is lent out is nobody else's."""

    def __init__(self):
        self.idle: list[DecodeChild] = []
        self.sealed: dict[str, bool] = {}
        """Reader -> whether it works in children that read no other files."""
        self.all: weakref.WeakSet[DecodeChild] = weakref.WeakSet()
        self.lock = threading.Lock()
        self._farewell = None

    def borrow(self, reader: str) -> DecodeChild:
        """A child that lives, and that such a reader has worked in if one has. RuntimeError where none can be
        started."""
        with self.lock:
            wanted = self.sealed.get(reader)
            for child in reversed(self.idle[:]):
                if wanted not in (None, child.is_sealed):
                    continue
                self.idle.remove(child)
                if child.process.poll() is None:
                    return child
                child.kill()
            if self._farewell is None:
                # Workers of multiprocessing leave through their finalizers and not through atexit.
                self._farewell = util.Finalize(None, self.retire, exitpriority=0)
        child = DecodeChild(reader)
        self.all.add(child)
        return child

    def give_back(self, child: DecodeChild) -> None:
        """Keep a child for later; the surplus retires."""
        child.media += 1
        with self.lock:
            if len(self.idle) < MAX_IDLE and child.media < MAX_MEDIA:
                self.idle.append(child)
                return
        child.retire()

    def retire(self) -> None:
        """End all idle children."""
        with self.lock:
            idle, self.idle = self.idle, []
        for child in idle:
            child.retire()

    def forget(self) -> None:
        """After a fork: nothing here is ours."""
        for child in self.all:
            child.disown()
        self.__init__()


pool = Pool()
os.register_at_fork(after_in_child=pool.forget)


# Readers


class IsolatedReader(Closing):
    """A reader ("module:class") at work in a child. See VideoReader.

    From opening to closing it has one allowance of time, which its calls use up.
    """

    def __init__(self, reader: str, medium: MediaFile, limits: MediaLimits):
        """Takes the medium over. Raises as the reader does, and DecoderLost when the child dies of it."""
        self.path, self._limits, self._child = medium.name, limits, None
        self._seconds_left = limits.decode_seconds
        ask = {"reader": reader, "medium": [medium.name, medium.kind, medium.size], "limits": asdict(limits)}
        with medium:
            try:
                facts = self._open(ask, medium.fd)
                self._info = check_info(VideoInfo(**facts), limits)
            except BaseException:
                self.close()
                raise

    def _open(self, ask: dict, fd: int) -> dict:
        """Facts about the medium, from the first child that can take it; a new one can."""
        while True:
            self._child = pool.borrow(ask["reader"])
            self._child.is_sealed |= pool.sealed.get(ask["reader"], False)  # also when it fails now
            try:
                said = self._call({"do": "open"} | ask, fds=[fd])
                self._child.is_sealed = pool.sealed[ask["reader"]] = said["sealed"]
                return said["facts"]
            except Spent:
                self._child.retire()

    def probe(self) -> VideoInfo:
        return self._info

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        seconds = checked_times(times).tolist()
        shape = shape_of(len(seconds), self._info, self._limits)
        if not seconds:
            return np.empty(shape, np.uint8)
        size = math.prod(shape)
        fd = unnamed_file(size)
        try:
            self._call({"do": "frames", "times": seconds, "shape": shape}, size, [fd])
            pixels_NHWC = np.frombuffer(mmap.mmap(fd, size), np.uint8).reshape(shape)
        finally:
            os.close(fd)
        if out is None:
            return pixels_NHWC
        out[:] = pixels_NHWC
        return out

    def make(self, said: dict, room: int) -> tuple[Any, bytes]:
        """What the reader's `make` gives: facts that JSON can hold, and a file of at most `room` bytes."""
        fd = unnamed_file(room)
        try:
            made = self._call({"do": "make", "said": said}, room, [fd])
            return made["facts"], os.pread(fd, made["size"], 0)
        finally:
            os.close(fd)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            try:
                child.tell({"do": "close"}, CLOSE_SECONDS, self._limits.decode_memory)
            except ChildDied:
                return
            pool.give_back(child)

    def _call(self, message: dict, extra: int = 0, fds: Sequence[int] = ()) -> dict:
        """`extra`: bytes of the descriptors' memory, which do not count as the decoder's."""
        if self._child is None:
            raise MediaError(self.path, "the reader is closed")
        said = self._answer(message, self._limits.decode_memory + extra, fds)
        if "ok" in said:
            return said["ok"]
        if said["error"] == "memory":  # what it holds is worth nothing any more
            self._child.kill()
            self._child = None
        raise ERRORS[said["error"]](self.path, said["text"])

    def _answer(self, message: dict, memory: int, fds: Sequence[int]) -> dict:
        started = time.monotonic()
        try:
            return self._child.call(message, max(self._seconds_left, LEAST_SECONDS), memory, fds)
        except ChildDied as error:
            self._child = None
            spent = time.monotonic() - started
            limit = self._limits.decode_seconds
            late = f"its decoder took longer than {limit:g} s"
            raise DecoderLost(self.path, late if spent >= self._seconds_left else str(error)) from None
        finally:
            self._seconds_left -= time.monotonic() - started


ERRORS: dict[str, Callable[[str, str], Exception]] = {
    "media": MediaError,
    "memory": DecoderLost,
    "spent": lambda path, text: Spent(),
    "value": lambda path, text: ValueError(text),
    "missing": lambda path, text: ImportError(text),
    "bug": lambda path, text: RuntimeError(f"{path}: the decoding child failed\n{text}"),
}
"""Kinds of errors that a child tells -> the error here, of the medium's name and the child's words."""
