"""Readers that misbehave as their file's name says; rows for VIDEO_READERS, loaded in the decoding child."""

import ctypes
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

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


def leave():
    os._exit(0)


def babble():
    raise KeyError("a bug")


DEEDS = {deed.__name__: deed for deed in (hang, spin, crash, abort, eat, leave, babble)}


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
    """Tries what a decoder has no business to do; its codec tells what worked."""

    def __init__(self, medium, limits):
        super().__init__(medium, limits)
        tries = {
            "network": lambda: socket.socket(socket.AF_INET),
            "program": lambda: subprocess.run(["true"], check=True),
            "kill": lambda: os.kill(os.getppid(), 0),
            "write": lambda: Path("/tmp/quicksviewer-burglar").write_bytes(b"x"),
            "files": lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(1000)],
        }
        worked = ",".join(name for name, try_it in tries.items() if works(try_it))
        self._info = replace(self._info, codec=worked)


def works(try_it) -> bool:
    try:
        try_it()
    except OSError:
        return False
    return True
