"""Readers that misbehave as their file's name says; rows for VIDEO_READERS, loaded in the decoding child."""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from quicksviewer.utils.syscalls import NUMBERS
from quicksviewer.utils.video_av import PyAVReader


def hang():
    time.sleep(600)


def spin():
    while True:
        pass


def crash():
    ctypes.string_at(0)


def abort():
    os.abort()


def eat():
    pieces = []
    while True:
        pieces.append(b"x" * 2**24)


def nibble():
    """Little, and for good."""
    hoard.append(b"x" * 2**25)


def dawdle():
    time.sleep(0.7)


hoard = []


def leave():
    os._exit(0)


def babble():
    raise KeyError("a bug")


DEEDS = {deed.__name__: deed for deed in (hang, spin, crash, abort, eat, nibble, dawdle, leave, babble)}


class EvilReader(PyAVReader):
    """Of "hang_open.mp4" it hangs when it opens it, of "crash_frames.mp4" it crashes over its frames, ..."""

    def __init__(self, medium, limits):
        self._act(medium.name, "open")
        super().__init__(medium, limits)

    def frames_at(self, times, out=None):
        self._act(self.path, "frames")
        return super().frames_at(times, out)

    def _act(self, name, moment):
        deed, _, when = os.path.basename(name).partition(".")[0].rpartition("_")
        if when == moment and deed in DEEDS:
            DEEDS[deed]()


class BurglarReader(PyAVReader):
    """Tries what a decoder has no business to do, some of it to "victim" beside its file; its codec tells
    what worked."""

    def __init__(self, medium, limits):
        super().__init__(medium, limits)
        victim = Path(medium.name).with_name("victim")
        tries = {**things_of_the_system(), **things_of(victim)}
        worked = ",".join(name for name, try_it in tries.items() if works(try_it))
        self._info = replace(self._info, codec=worked)


def things_of_the_system() -> dict:
    parent = os.getppid()
    return {
        "network": lambda: socket.socket(socket.AF_INET),
        "program": lambda: subprocess.run(["true"], check=True),
        "fork": lambda: os.fork() or os._exit(0),
        "kill": lambda: os.kill(parent, 0),
        "pidfd": lambda: signal.pidfd_send_signal(os.pidfd_open(parent), 0),
        "thread of another": lambda: call("tgkill", parent, parent, 0),
        "limits of another": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
        "write": lambda: Path("/tmp/quicksviewer-burglar").write_bytes(b"x"),
        "files": lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(1000)],
        "environment": lambda: os.stat("nowhere" if "SECRET_TOKEN" not in os.environ else "/"),
        "environment of another": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
    }


def things_of(victim: Path) -> dict:
    return {
        "read": victim.read_bytes,
        "list": lambda: os.listdir(victim.parent),
        "append": lambda: victim.open("ab"),
        "truncate": lambda: os.truncate(victim, 0),
        "chmod": lambda: victim.chmod(0o777),
        "utime": lambda: os.utime(victim, (0, 0)),
        "link": lambda: os.link(victim, f"{victim}-link"),
        "symlink": lambda: os.symlink(victim, f"{victim}-symlink"),
        "mkdir": lambda: os.mkdir(f"{victim}-folder"),
        "rename": lambda: victim.rename(f"{victim}-renamed"),
        "remove": victim.unlink,
    }


def call(name: str, *words: int) -> None:
    """A system call. OSError when it is refused."""
    _, calls = NUMBERS[os.uname().machine]
    number = next(int(one.partition("=")[2]) for one in calls.split() if one.startswith(f"{name}="))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(*map(ctypes.c_long, (number, *words))) < 0:
        raise OSError(ctypes.get_errno(), name)


def works(try_it) -> bool:
    try:
        try_it()
    except OSError:
        return False
    return True
