"""Names and their rows as arrays: found by binary search in a mapped file, where a dict would be copied into
every worker."""

import hashlib
from collections.abc import Sequence

import numpy as np

from quicksviewer.utils.array_file import Arrays, DamagedFile

HASHES, ROWS, ENDS, LETTERS = "name_hashes", "name_rows", "name_ends", "name_letters"
MAX_NAME = 4096
"""Bytes."""


def hash_of(name: bytes) -> int:
    """64 bits of a name."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def name_arrays(names: Sequence[str]) -> Arrays:
    """Names in the order of their rows, as the arrays of a NameTable. ValueError for one said twice."""
    letters = [name.encode() for name in names]
    if len(set(letters)) != len(letters):
        raise ValueError("a name is said twice")
    if longest := [name for name in letters if len(name) > MAX_NAME]:
        raise ValueError(f"a name has {len(longest[0])} bytes, the most is {MAX_NAME}")
    hashes = np.fromiter(map(hash_of, letters), np.uint64, len(letters))
    order = np.argsort(hashes, kind="stable")
    return {
        HASHES: hashes[order].astype("<u8"),
        ROWS: order.astype("<i8"),
        ENDS: np.cumsum([0, *map(len, letters)]).astype("<i8"),
        LETTERS: np.frombuffer(b"".join(letters), np.uint8),
    }


class NameTable:
    """Name <-> row. DamagedFile where the arrays cannot belong together."""

    def __init__(self, arrays: Arrays):
        if missing := {HASHES, ROWS, ENDS, LETTERS} - arrays.keys():
            raise DamagedFile(f"it has no {', '.join(sorted(missing))}")
        self._hashes, self._rows = arrays[HASHES], arrays[ROWS]
        self._ends, self._letters = arrays[ENDS], arrays[LETTERS]
        count, ends = len(self._hashes), self._ends
        fits = len(self._rows) == count == len(ends) - 1 and ends[0] == 0 and ends[-1] == len(self._letters)
        if not fits or (np.diff(ends) < 0).any() or (count and self._rows.min() < 0):
            raise DamagedFile("its names do not fit together")
        if count and self._rows.max() >= count:
            raise DamagedFile("its names point to rows that are not there")

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, row: int) -> str:
        """The name of a row."""
        return self._bytes(row).decode("utf-8", "replace")

    def _bytes(self, row: int) -> bytes:
        return self._letters[self._ends[row] : self._ends[row + 1]].tobytes()

    def find(self, name: str) -> int | None:
        """The row of a name; None where there is none."""
        letters = name.encode("utf-8", "surrogatepass")
        wanted = np.uint64(hash_of(letters))
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self) and self._hashes[place] == wanted:
            if self._bytes(row := int(self._rows[place])) == letters:
                return row
            place += 1
        return None
