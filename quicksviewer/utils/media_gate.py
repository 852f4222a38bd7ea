"""The one gate: every byte of media enters here, whether it comes as a path, as bytes or as a data URL.

    open_medium("clips/a.mp4", VIDEO_KINDS)                      a path that the user typed
    open_medium(RootedPath("clips", "a.mp4"), VIDEO_KINDS)       a path that a row of a data set names
    open_medium(jpeg_bytes, IMAGE_KINDS)                         a frame of a store, an upload
    open_medium("data:image/png;base64,...", IMAGE_KINDS)        a data URL

What comes out is an open descriptor whose content was sniffed and weighed. Decoders are given the descriptor
and nothing else: they never see a name, so no name can lead them to another file, a device or an address.
"""

import base64
import binascii
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from typing import BinaryIO

from quicksviewer.utils.media import (
    HEAD_BYTES,
    MediaError,
    MediaLimits,
    check_kind,
    check_whole,
    os_errors,
)

BYTES_NAME, URL_NAME = "<bytes>", "<data URL>"
"""Stand for the path in errors about media that came without one."""

FD_FOLDER = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
"""Where the system shows a process its descriptors as files."""

DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w.+=-]+)*;base64,", re.ASCII)
PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE | re.ASCII)
"""What an address starts with; "concat:a|b" and "file:a" are such for ffmpeg too."""
NOT_STORED = ("/proc", "/sys", "/dev")
"""Trees of the system: what lies there is made on reading, or is a device."""
SHARED_MEMORY = "/dev/shm"
"""The one folder there that holds ordinary files."""

FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""No link is followed, nothing waits for the other end of a pipe, no terminal is taken over."""


class RootedPath(str):
    """A path that a row of a data set names, bound to the folder that it may not leave.

    It is the joined path as a text, so that it passes through schemas and messages; the gate sees its `root`.
    """

    def __new__(cls, root: str | os.PathLike, path: str):
        self = super().__new__(cls, os.path.join(root, path))
        self.root, self.path = os.fspath(root), path
        return self

    def __getnewargs__(self):
        return self.root, self.path


class MediaFile:
    """What has passed the gate: an open file. `name` is for messages, `fd` for decoders; close it once."""

    def __init__(self, name: str, kind: str, size: int, fd: int):
        self.name, self.kind, self.size, self.fd = name, kind, size, fd

    @property
    def path(self) -> str:
        """A path by which a decoder of this process opens the descriptor anew."""
        return f"{FD_FOLDER}/{self.fd}"

    def reader(self) -> BinaryIO:
        """The file from its start, as an object to be closed. All of them share one position."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        return open(os.dup(self.fd), "rb")

    def close(self) -> None:
        """May be called twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def open_medium(
    ref: str | os.PathLike | bytes,
    allowed: Iterable[str],
    limits: MediaLimits | None = None,
    root: str | os.PathLike | None = None,
) -> MediaFile:
    """A medium of an allowed kind, open for reading.

    `ref`: a path, bytes, a data URL, or a medium of a store (anything with `load(limits)` that gives bytes).
    `root`: the folder that a path must lie in (that of a RootedPath when not given); relative paths start
    there. Without one a path is one that the user typed: it may lead anywhere, but only to a stored file.
    Raises MediaError: no file, a path that leaves its root, a folder or device, empty, another kind, too
    large, truncated.
    """
    limits = limits or MediaLimits()
    if isinstance(ref, bytes | bytearray | memoryview):
        name, fd = BYTES_NAME, _hold(BYTES_NAME, ref, limits)
    elif hasattr(ref, "load"):
        name, fd = str(ref), _hold(str(ref), ref.load(limits), limits)
    elif isinstance(ref, str) and (head := DATA_URL.match(said := _said(ref))):
        name, fd = URL_NAME, _hold(URL_NAME, _from_base64(said, head.end(), limits), limits)
    else:
        name = os.fsdecode(ref)
        root = ref.root if root is None and isinstance(ref, RootedPath) else root
        fd = _open_path(name, _said(ref), root, limits)
    try:
        return _checked(name, fd, tuple(allowed), limits)
    except BaseException:
        os.close(fd)
        raise


def _checked(name: str, fd: int, allowed: tuple[str, ...], limits: MediaLimits) -> MediaFile:
    with os_errors(name), open(fd, "rb", closefd=False) as file:
        size = os.fstat(fd).st_size
        limits.check_bytes(name, size)
        kind = check_kind(name, file.read(HEAD_BYTES), allowed)
        check_whole(name, kind, file, size)
    return MediaFile(name, kind, size, fd)


# Bytes


def unnamed_file(size: int) -> int:
    """A descriptor of memory of so many bytes that has no name: it is gone with its last descriptor. Where
    the system can, its size is fixed, so that whoever else holds it cannot pull it away."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("medium", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd
    with tempfile.TemporaryFile() as file:
        os.truncate(file.fileno(), size)
        return os.dup(file.fileno())


def _hold(name: str, data: bytes, limits: MediaLimits) -> int:
    size = memoryview(data).nbytes
    limits.check_memory(name, size)
    fd = unnamed_file(size)
    with open(fd, "r+b", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _from_base64(url: str, start: int, limits: MediaLimits) -> bytes:
    limits.check_memory(URL_NAME, (len(url) - start) * 3 // 4)
    try:
        return base64.b64decode(memoryview(url.encode("ascii"))[start:], validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise MediaError(URL_NAME, f"is not base64: {error}") from error


# Paths


def _said(ref: str | os.PathLike) -> str:
    """A path as it was written, before it was put under a root."""
    return ref.path if isinstance(ref, RootedPath) else os.fsdecode(ref)


def _open_path(name: str, said: str, root: str | os.PathLike | None, limits: MediaLimits) -> int:
    """A descriptor of the stored file that a path leads to, under its root when there is one."""
    _check_text(name, said, rooted=root is not None)
    with os_errors(name):
        real = os.path.realpath(name if root is None else os.path.join(root, said), strict=True)
        base = os.path.dirname(real) if root is None else os.path.realpath(root, strict=True)
        if not _lies_in(real, base):
            raise MediaError(name, f"leads out of its media root {os.fspath(root)}")
        if any(_lies_in(real, tree) for tree in NOT_STORED) and not _lies_in(real, SHARED_MEMORY):
            raise MediaError(name, "is not a stored file")
        fd = _open_beneath(name, base, os.path.relpath(real, base))
    links = os.fstat(fd).st_nlink
    if root is not None and links > limits.max_links:
        os.close(fd)
        reason = f"has {links} names (hard links), the limit is {limits.max_links}: one may lie elsewhere"
        raise MediaError(name, reason)
    return fd


def _check_text(name: str, said: str, rooted: bool) -> None:
    """What can be told from the text of a path alone."""
    if "\0" in said:
        raise MediaError(name.replace("\0", "\\0"), "a path cannot hold a NUL")
    if found := PROTOCOL.match(said):
        raise MediaError(
            name, f"{found[0]!r} starts an address; media are stored files (a file of this name: ./{said})"
        )
    if rooted and ".." in said.split(os.sep):
        raise MediaError(name, "'..' in a path of a data set")
    if any(_lies_in(os.path.abspath(said), tree) for tree in ("/proc", "/sys")):
        raise MediaError(name, "is not a stored file")
    try:
        os.fsencode(said)
    except UnicodeEncodeError as error:
        raise MediaError(name.encode("ascii", "backslashreplace").decode(), "is no name of a file") from error


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _open_beneath(name: str, base: str, relative: str) -> int:
    """Open a file by walking down from a folder without following a link.

    All links were resolved before: one that is met here was put there since, by somebody who wants out.
    """
    *folders, last = relative.split(os.sep)
    at = os.open(base, FOLDER_FLAGS & ~os.O_NOFOLLOW)
    try:
        for folder in folders:
            below = os.open(folder, FOLDER_FLAGS, dir_fd=at)
            os.close(at)
            at = below
        _check_regular(name, os.stat(last, dir_fd=at, follow_symlinks=False).st_mode)
        fd = os.open(last, FILE_FLAGS, dir_fd=at)
    finally:
        os.close(at)
    try:
        _check_regular(name, os.fstat(fd).st_mode)
    except MediaError:
        os.close(fd)
        raise
    return fd


def _check_regular(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise MediaError(name, f"is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}")
