"""The child that decodes: a process of its own, one medium at a time, which its parent may kill at any time.

    python -m quicksviewer.utils.decode_child FD READER     started by utils/decode_pool.py; FD is its socket

It is given a descriptor of the medium and one of the memory that the frames go to, and nothing else. Messages
are a length and JSON. It ends with its parent: when the socket closes or, amid a call, when the call's time
is over. What it has been forbidden (`harden`) it cannot allow itself again.
"""

import gc
import importlib
import json
import mmap
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

import numpy as np

from quicksviewer.utils import landlock
from quicksviewer.utils.media import MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile
from quicksviewer.utils.registry import load_target
from quicksviewer.utils.syscalls import forbid_syscalls
from quicksviewer.utils.video import MAX_THREADS

MAX_MESSAGE = 2**24
"""Bytes of a message: a million times to look at."""
USUAL = ("quicksviewer.utils.video_av", "quicksviewer.utils.image")
"""Modules of readers that are loaded at the start: the time of a call is for decoding."""
MAX_OPEN_FILES = 64
MAX_LEFT = 0.5
"""Share of the memory of a medium that those before it may have left behind; then another child takes it."""
SYSTEM_FOLDERS = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "/dev/null", "/dev/urandom"),
)
PATIENCE = 1.0
"""Seconds that the parent has to act before a call that takes too long ends the child by itself."""


# Messages


def send(channel: socket.socket, message: dict, fds: Sequence[int] = ()) -> None:
    """A message, with descriptors that the other side gets copies of."""
    letters = json.dumps(message).encode()
    socket.send_fds(channel, [len(letters).to_bytes(4)], list(fds))
    channel.sendall(letters)


def receive(channel: socket.socket, seconds: float | None = None) -> tuple[dict, list[int]] | None:
    """The next message, its descriptors; None when the other side is gone. TimeoutError after `seconds`."""
    until = None if seconds is None else time.monotonic() + seconds
    channel.settimeout(seconds)
    head, fds, _, _ = socket.recv_fds(channel, 4, 1)
    if not head:
        return None
    size = int.from_bytes(head + _exactly(channel, 4 - len(head), until))
    return json.loads(_exactly(channel, size, until)), fds


def _exactly(channel: socket.socket, size: int, until: float | None) -> bytes:
    if size > MAX_MESSAGE:
        raise ConnectionError(f"a message of {size} bytes")
    letters = bytearray()
    while len(letters) < size:
        if until is not None:
            channel.settimeout(max(until - time.monotonic(), 1e-3))
        if not (piece := channel.recv(size - len(letters))):
            raise ConnectionError("a message was cut short")
        letters += piece
    return bytes(letters)


# Limits


def program_folders() -> list[str]:
    """Where this program's code and libraries lie, and what these ask of the system; no data."""
    own = os.path.dirname(os.path.dirname(__file__))
    packages = [place for place in sys.path if place.endswith(("site-packages", "dist-packages"))]
    return [own, sys.prefix, sys.base_prefix, *packages, *SYSTEM_FOLDERS]


def harden() -> list[str]:
    """Give up, for good, what decoding does not need. What was given up.

    Reading other files is given up with the first medium (`Worker.open`).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    reading = ["reading files"] if landlock.version() else []
    return ["core dumps", "many files", "writing files", *forbid_syscalls(), *reading]


def limit_call(seconds: float, memory: int, own: int | None = None) -> None:
    """For the call that begins: seconds by the clock and of each thread's work, bytes of address space beside
    the program's `own`, which are those of now when not given."""
    signal.setitimer(signal.ITIMER_REAL, seconds + PATIENCE)  # nobody handles SIGALRM: it ends the process
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime + (seconds + PATIENCE) * MAX_THREADS) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    if own := address_space() if own is None else own:
        _limit_memory(own + memory)


def _limit_memory(size: int | None) -> None:
    """Bytes of address space; None: as much as there is."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if size is None else size, most))


def address_space() -> int:
    """Bytes of address space in use; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


# Work


def import_reader(reader: str) -> type:
    """A reader ("module:class"), its packages loaded. Raises as they do."""
    target = load_target(reader)
    if load := getattr(target, "load", None):
        load()
    return target


class Spent(Exception):
    """This child is not the one for the medium; another one is."""


class Worker:
    """One reader at a time, and the answers to the messages about it."""

    def __init__(self, loaded: str):
        """`loaded`: the reader that the child was started for."""
        self.reader = None
        self.own = address_space()
        """What the program takes. It is counted once: what media leave behind is not forgiven."""
        self._loaded = {loaded}
        self._sealed = False

    def load(self, reader: str) -> None:
        """Import a reader and its packages, whose size is no fault of a medium.

        What packages do as they are imported may be forbidden by now: a new child can do it at its start.
        """
        if reader in self._loaded:
            return
        before = address_space()
        _limit_memory(None)
        try:
            import_reader(reader)
        except Exception:
            raise Spent from None
        self.own += address_space() - before
        self._loaded.add(reader)

    def open(self, fds: list[int], reader: str, medium: list, limits: dict) -> dict:
        """Take a medium over; facts about it, and whether this child reads no other files any more."""
        self.close([])
        name, kind, size = medium
        bounds = MediaLimits(**limits)
        target, left = import_reader(reader), address_space() - self.own
        if left > MAX_LEFT * bounds.decode_memory or target.BY_PATH and self._sealed:
            raise Spent
        if not target.BY_PATH and not self._sealed:
            self._sealed = landlock.read_only(program_folders())
        self.reader = target(MediaFile(name, kind, size, fds[0]), bounds)
        return {"facts": asdict(self.reader.probe()), "sealed": self._sealed}

    def frames(self, fds: list[int], times: list[float], shape: list[int]) -> dict:
        """Write frames into the memory behind a descriptor."""
        memory = mmap.mmap(fds[0], 0)  # let go with the last array that looks at it
        os.close(fds[0])
        self.reader.frames_at(times, np.frombuffer(memory, np.uint8).reshape(shape))
        return {}

    def make(self, fds: list[int], said: dict) -> dict:
        """Let the reader make a file; it goes into the memory behind a descriptor."""
        memory = mmap.mmap(fds[0], 0)
        os.close(fds[0])
        with memory:
            facts, letters = self.reader.make(said, len(memory))
            memory[: len(letters)] = letters
        return {"facts": facts, "size": len(letters)}

    def close(self, fds: list[int]) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None
            gc.collect()  # containers and their threads hang together in circles


def answer(worker: Worker, message: dict, fds: list[int]) -> dict | None:
    """What to say to a message: {"ok": ...}, {"error": kind, ...}, or nothing."""
    seconds, memory = message.pop("seconds"), message.pop("memory")
    try:
        if "reader" in message:
            worker.load(message["reader"])
        limit_call(seconds, memory, worker.own)
        done = getattr(worker, message.pop("do"))(fds, **message)
        return None if done is None else {"ok": done}
    except MediaError as error:
        return {"error": "media", "text": error.reason}
    except Spent:
        return {"error": "spent", "text": ""}
    except MemoryError:
        return {"error": "memory", "text": "its decoder needs more memory than it may take"}
    except ValueError as error:
        return {"error": "value", "text": str(error)}
    except ImportError as error:
        return {"error": "missing", "text": str(error)}
    except Exception:
        return {"error": "bug", "text": traceback.format_exc()}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def serve(channel: socket.socket, worker: Worker) -> None:
    """Answer until the other side is gone."""
    while (request := receive(channel)) is not None:
        if (said := answer(worker, *request)) is not None:
            send(channel, said)


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    fd, reader = argv
    for module in USUAL:
        importlib.import_module(module)
    with suppress(Exception):  # it is told when a medium comes
        import_reader(reader)
    with socket.socket(fileno=int(fd)) as channel:
        send(channel, {"ok": harden()})
        gc.freeze()  # what is here stays: it need not be looked at after each medium
        try:
            serve(channel, Worker(reader))
        except (ConnectionError, BrokenPipeError):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
