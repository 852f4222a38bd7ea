"""A tar archive read member by member, never extracted: local, or wherever fsspec reaches.

One walk over the headers finds the members; what it finds is kept and mapped (utils/array_file.py). Only
plain files can be read. A link, a device, a sparse file, a name that climbs (`..`), is absolute or said twice
makes the archive unusable, and so does a damaged header or a cut end.
"""

import hashlib
import os
import posixpath
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from quicksviewer.utils.array_file import Arrays, is_settled, kept
from quicksviewer.utils.media import MediaError, MediaLimits, os_errors
from quicksviewer.utils.name_table import MAX_NAME, NameTable, name_arrays
from quicksviewer.utils.registry import require

VERSION = 1
MAX_HEADER = 1 << 20
"""Bytes that one read of the walk may take: headers, and long names in them."""
DIGESTED = (".json",)
"""Members of these kinds are rows: their bytes are part of the digest."""
REMOTE_BLOCK = 1 << 16
"""What one read of headers fetches from elsewhere."""


def is_remote(path: str) -> bool:
    return "://" in path


class TarShard:
    """The plain files of an archive by name. Pickles to its path; forked workers share it."""

    def __init__(self, path: str | os.PathLike, limits: MediaLimits | None = None, stamp: dict | None = None):
        """`path`: of a file, or a URL of fsspec. `stamp`: that of an earlier opening, if it still holds.

        MediaError where it cannot be used.
        """
        self.path, self.limits = os.fspath(path), limits or MediaLimits()
        self._files = _Remote(self.path) if is_remote(self.path) else _Local(self.path)
        self.stamp, settled = (stamp, True) if stamp else self._files.stamp()
        """What tells that the archive is the same."""
        make = self._walk
        about, arrays = kept(self._files.name, "tars", self.stamp, make) if settled else make()
        self.digest: str = about["digest"]
        """sha256 (hex) of names, sizes, and the bytes of rows. Other members' bytes are no part of it."""
        self.names = NameTable(arrays)
        self.places, self.sizes = arrays["places"], arrays["sizes"]
        """int64 (members,): first byte and number of bytes."""

    def __reduce__(self):
        return TarShard, (self.path, self.limits)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return self.names.find(name) is not None

    def read(self, name: str, most: int | None = None) -> bytes:
        """The bytes of a member. KeyError for an unknown name, MediaError for one beyond the limits."""
        return self.read_row(self._row(name), most)

    def _row(self, name: str) -> int:
        if (row := self.names.find(name)) is None:
            raise KeyError(f"{self.path} has no member {name!r}")
        return row

    def num_bytes(self, name: str) -> int:
        """Bytes of a member. KeyError for an unknown name."""
        return int(self.sizes[self._row(name)])

    def read_row(self, row: int, most: int | None = None) -> bytes:
        """The bytes of the member at a row; of one that is larger, the first `most`."""
        size = int(self.sizes[row]) if most is None else min(int(self.sizes[row]), most)
        self.limits.check_memory(f"{self.path}::{self.names[row]}", size)
        found = self._files.read(int(self.places[row]), size)
        if len(found) != size:
            raise MediaError(self.path, f"member {self.names[row]!r} ends early: the archive has changed")
        return found

    def _walk(self) -> tuple[dict, Arrays]:
        digest, names, places, sizes = hashlib.sha256(), [], [], []
        with self._files.open() as file:
            for member in _members(self.path, file):
                names.append(member.name)
                places.append(member.offset_data)
                sizes.append(member.size)
                digest.update(f"{member.name}\0{member.size}\0".encode("utf-8", "surrogatepass"))
                if member.name.endswith(DIGESTED):
                    self.limits.check_memory(f"{self.path}::{member.name}", member.size)
                    digest.update(self._files.read(member.offset_data, member.size))
        try:
            arrays = name_arrays(names)
        except ValueError as error:
            raise MediaError(self.path, f"cannot be read as an archive of media: {error}") from error
        ints = {"places": np.array(places, np.int64), "sizes": np.array(sizes, np.int64)}
        return {"digest": digest.hexdigest()}, arrays | ints


# Where archives lie


class _Local:
    def __init__(self, path: str):
        self.path, self.name = path, os.path.abspath(path)

    def stamp(self) -> tuple[dict, bool]:
        """What tells that the archive is the same, and whether it can be relied on."""
        with os_errors(self.path):
            status = os.stat(self.path)
        return {"version": VERSION, "size": status.st_size, "changed": status.st_mtime_ns}, is_settled(status)

    def open(self) -> BinaryIO:
        with os_errors(self.path):
            return open(self.path, "rb")

    def read(self, place: int, size: int) -> bytes:
        with os_errors(self.path), open(self.path, "rb", buffering=0) as file:
            pieces = []
            while size and (piece := os.pread(file.fileno(), size, place)):
                pieces.append(piece)
                place, size = place + len(piece), size - len(piece)
            return b"".join(pieces)


class _Remote:
    def __init__(self, url: str):
        self.name = url
        self._reach()

    def _reach(self) -> None:
        fsspec = require("fsspec", "data")
        try:
            self._system, self.path = fsspec.core.url_to_fs(self.name)
        except (ValueError, ImportError) as error:
            raise MediaError(self.name, f"no such file system: {error}") from error
        self._process = os.getpid()

    @property
    def system(self):
        """The file system, of this process: connections and loops of events do not outlive a fork."""
        if self._process != os.getpid():
            self._reach()
        return self._system

    def stamp(self) -> tuple[dict, bool]:
        with os_errors(self.name):
            size, state = self.system.size(self.path), self.system.ukey(self.path)
        return {"version": VERSION, "size": size, "state": str(state)}, True

    def open(self) -> BinaryIO:
        with os_errors(self.name):
            return self.system.open(self.path, "rb", block_size=REMOTE_BLOCK)

    def read(self, place: int, size: int) -> bytes:
        with os_errors(self.name):
            return self.system.cat_file(self.path, place, place + size) if size else b""


# The walk


class _Bounded:
    """A file that refuses a read of more than a header: a damaged length must not become memory."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(path: str, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive in order. MediaError where it is not one that may be used."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:
            for member in archive:
                archive.members = []  # it would keep them all
                if not member.isdir():
                    yield _plain(path, member, size)
            end = archive.offset
    # A damaged header makes tarfile fail in all these ways.
    except (tarfile.TarError, OSError, ValueError, OverflowError, IndexError, EOFError) as error:
        raise MediaError(path, f"damaged archive: {error}") from error
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile ends at damage silently
        raise MediaError(path, f"damaged archive: no header and no end at byte {end} of {size}")


def _plain(path: str, member: tarfile.TarInfo, size: int) -> tarfile.TarInfo:
    name = member.name
    if not member.isreg() or member.issparse():
        what = "a link" if member.islnk() or member.issym() else "not a plain file"
        raise MediaError(path, f"member {name[:80]!r} is {what}; only plain files are read")
    parts = name.split("/")
    if (
        posixpath.isabs(name)
        or ".." in parts
        or "\0" in name
        or len(name.encode(errors="replace")) > MAX_NAME
    ):
        raise MediaError(path, f"member {name[:80]!r}: a name may not climb, start at the root or be endless")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise MediaError(path, f"member {name[:80]!r}: a name must be UTF-8") from error
    if member.offset_data + member.size > size:
        raise MediaError(path, f"truncated: member {name[:80]!r} ends behind byte {size}")
    return member
