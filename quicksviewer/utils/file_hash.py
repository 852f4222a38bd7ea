"""Hashes of open files by name: of all of a file, or of samples, which tell files apart at the cost of three
reads."""

import hashlib
import os
from collections.abc import Callable

PIECE = 1 << 16
"""Bytes that a sampled hash takes at the start, in the middle and at the end of a file."""
BLOCK = 1 << 20


def _sampled(fd: int, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    for place in sorted({0, max(0, (size - PIECE) // 2), max(0, size - PIECE)}):
        digest.update(os.pread(fd, PIECE, place))
    return f"sampled:{digest.hexdigest()}"


def _whole(fd: int, size: int) -> str:
    digest = hashlib.sha256()
    for place in range(0, size, BLOCK):
        digest.update(os.pread(fd, BLOCK, place))
    return f"sha256:{digest.hexdigest()}"


HASHES: dict[str, Callable[[int, int], str | None]] = {
    "sampled": _sampled,
    "sha256": _whole,
    "none": lambda fd, size: None,
}
"""Name -> hash of an open file (descriptor, bytes), which starts with this name."""


def has_hash(path: str | os.PathLike, known: str) -> bool:
    """Whether a file has a hash that HASHES gave. OSError where it cannot be read."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return HASHES[known.partition(":")[0]](file.fileno(), size) == known
