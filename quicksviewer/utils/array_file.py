"""Arrays in a file that are mapped into memory, so that all processes of a machine share one copy.

    "QVARRAYS" | length of head | CRC of head | head (JSON) | arrays, each at a multiple of 64 bytes

The head says what the block is about and, of every array, type, length, place and CRC. A block may stand at
any place of a file; `kept` holds blocks in a cache, for what is slow to compute and follows from a file.
"""

import fcntl
import hashlib
import json
import mmap
import os
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from quicksviewer.utils.utils import get_logger

MAGIC = b"QVARRAYS"
FRONT = struct.Struct("<8sII")
ALIGN = 64
MAX_HEAD = 1 << 20
TYPES = ("<i8", "<u8", "<u4", "|u1", "<f8")
SETTLED_NS = 2 * 10**9
"""A file that was changed less than this ago may change once more within one tick of its clock."""
CACHE_VARIABLE = "QUICKSVIEWER_CACHE"

Arrays = dict[str, np.ndarray]


class DamagedFile(Exception):
    """Bytes that are not what was written. `str()` says what was found."""


def write_block(file: BinaryIO, about: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one-dimensional arrays at the place where the file stands. `about`: plain values."""
    plain = {name: _little(array) for name, array in arrays.items()}
    rows, place = {}, 0
    for name, array in plain.items():
        place += -place % ALIGN
        rows[name] = [array.dtype.str, len(array), place, zlib.crc32(array)]
        place += array.nbytes
    head = json.dumps({"about": dict(about), "arrays": rows}).encode()
    head += b" " * (-(FRONT.size + len(head)) % ALIGN)
    if len(head) > MAX_HEAD:
        raise ValueError(f"the head of a block has {len(head)} bytes, the most is {MAX_HEAD}")
    file.write(FRONT.pack(MAGIC, len(head), zlib.crc32(head)) + head)
    written = 0
    for name, array in plain.items():
        file.write(b"\0" * (rows[name][2] - written))
        file.write(array.data)
        written = rows[name][2] + array.nbytes


def _little(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    if array.ndim != 1 or array.dtype.str not in TYPES:
        raise ValueError(f"an array must have one dimension and a type of {TYPES}, got {array.dtype.str}")
    return array


def map_block(
    path: str | os.PathLike, start: int = 0, stop: int | None = None, unchecked: tuple[str, ...] | None = ()
) -> tuple[dict, Arrays]:
    """What a block is about, and its arrays, read-only and mapped.

    `start`, `stop`: the bytes of the file that are the block. `unchecked`: arrays whose CRC is not computed,
    so that they are not read now; None: all. DamagedFile where the bytes are not those that were written.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise DamagedFile(f"a block at bytes {start} to {stop} of a file of {size}")
        file.seek(start)
        about, rows, first = _read_head(file, stop - start)
        if not rows:
            return about, {}
        bytes_ = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)[start:stop]
    trusted = rows if unchecked is None else unchecked
    return about, {name: _array(bytes_, first, name, row, name in trusted) for name, row in rows.items()}


def _read_head(file: BinaryIO, size: int) -> tuple[dict, dict, int]:
    """(about, rows of the arrays, where the arrays begin)"""
    front = file.read(FRONT.size)
    if len(front) < FRONT.size:
        raise DamagedFile(f"{len(front)} bytes, a block has at least {FRONT.size}")
    magic, length, crc = FRONT.unpack(front)
    if magic != MAGIC or length > min(MAX_HEAD, size):
        raise DamagedFile(f"starts with {magic!r} and a head of {length} bytes, expected {MAGIC!r}")
    head = file.read(length)
    if len(head) != length or zlib.crc32(head) != crc:
        raise DamagedFile("its head does not have its CRC")
    told = json.loads(head)  # the CRC vouches for what stands in it
    return told["about"], told["arrays"], FRONT.size + length


def _array(block: np.ndarray, first: int, name: str, row: list, unchecked: bool) -> np.ndarray:
    kind, count, place, crc = row
    start, stop = first + place, first + place + count * np.dtype(kind).itemsize
    if stop > len(block):
        raise DamagedFile(f"array {name!r} ends at byte {stop} of {len(block)}")
    piece = block[start:stop]
    if not unchecked and zlib.crc32(piece) != crc:
        raise DamagedFile(f"array {name!r} does not have its CRC")
    # A copy where the block lies so that its numbers would straddle words.
    return piece.view(kind) if start % np.dtype(kind).itemsize == 0 else piece.copy().view(kind)


# What follows from a file, kept


def cache_folder() -> Path:
    """$QUICKSVIEWER_CACHE, or the folder `quicksviewer` of the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quicksviewer"


def kept(of: str, kind: str, stamp: Mapping, make: Callable[[], tuple[dict, Arrays]]) -> tuple[dict, Arrays]:
    """What `make` gives, from the cache if it was made for the same `of` (a path), `kind` and `stamp`.

    `stamp` holds what must be unchanged: size, time, version. A damaged entry is made anew. One process makes
    while the others wait. Where the cache cannot be written, what was made stays in this process.
    """
    name = hashlib.sha256(of.encode()).hexdigest()[:16] + "-" + os.path.basename(of)[:80]
    path = cache_folder() / kind / name
    if (found := _find(path, stamp)) is not None:
        return found
    try:
        with _locked(path):
            if (found := _find(path, stamp)) is not None:
                return found
            about, arrays = make()
            _keep(path, {"stamp": dict(stamp), "made": about}, arrays)
            return _find(path, stamp) or (about, arrays)
    except OSError as error:
        if not isinstance(error.filename, str) or not error.filename.startswith(str(cache_folder())):
            raise
        get_logger(__name__).warning("%s cannot be written (%s): %s is not kept", path, error.strerror, kind)
        return make()


_whole: set[tuple] = set()
"""Entries of the cache that this process, or the one it was forked from, has found undamaged."""


def _find(path: Path, stamp: Mapping) -> tuple[dict, Arrays] | None:
    try:
        status = os.stat(path)
        entry = path, status.st_ino, status.st_size, status.st_mtime_ns
        about, arrays = map_block(path, unchecked=None if entry in _whole else ())
    except (OSError, DamagedFile):
        return None
    _whole.add(entry)
    return (about["made"], arrays) if about.get("stamp") == dict(stamp) else None


def _keep(path: Path, about: dict, arrays: Arrays) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(aside, "wb") as file:
            write_block(file, about, arrays)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock ends with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_settled(status: os.stat_result) -> bool:
    """Whether a file was last changed so long ago that its time will tell the next change."""
    return time.time_ns() - status.st_mtime_ns > SETTLED_NS
