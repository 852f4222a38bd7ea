"""The rows of a JSONL file, read one at a time by byte offset.

One scan finds the offsets; of a large file they are kept and mapped (utils/array_file.py), so that any number
of workers and later runs share one copy. Lines without text are not rows.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from quicksviewer.data.sources.rows import LIMITS, RowLimits, parse_row
from quicksviewer.utils.array_file import Arrays, is_settled, kept

VERSION = 1
BLOCK = 4 << 20
"""Bytes that one step of a scan looks at."""
MIN_KEPT_BYTES = 8 << 20
"""Of a smaller file the index is made anew each time: that is as fast as finding it."""
NEWLINE = 10
IS_TEXT = np.ones(256, np.uint8)
IS_TEXT[list(b" \t\n\r\x0b\x0c")] = 0


class JsonlIndex:
    """A Source: `index[i]` is (row, "file:line"). No file stays open, so that it may be pickled and forked.

    `sha256` and `num_bytes` are those of the file. OSError where it has changed since it was indexed.
    """

    def __init__(self, path: str | os.PathLike, limits: RowLimits = LIMITS):
        self.path, self.limits = os.fspath(path), limits
        self._attach()

    def _attach(self) -> None:
        status = os.stat(self.path)
        stamp = {"version": VERSION, "size": status.st_size, "changed": status.st_mtime_ns}
        if status.st_size >= MIN_KEPT_BYTES and is_settled(status):
            about, arrays = kept(os.path.abspath(self.path), "rows", stamp, lambda: scan(self.path))
        else:
            about, arrays = scan(self.path)
        self.num_bytes, self.sha256 = about["bytes"], about["sha256"]
        self.offsets = arrays["offsets"]
        """int64 (rows + 1,): where each row begins; the last is the end of the file."""
        self._lines = arrays.get("lines")

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the file."""
        return self.sha256

    def __getstate__(self) -> dict:
        # Not the offsets: whoever receives this maps them again.
        return {"path": self.path, "limits": self.limits, "sha256": self.sha256}

    def __setstate__(self, state: dict) -> None:
        self.path, self.limits = state["path"], state["limits"]
        self._attach()
        if self.sha256 != state["sha256"]:
            raise self._changed("it has other content now")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def line(self, index: int) -> int:
        """The number of the line, from 1, on which a row stands."""
        return index + 1 if self._lines is None else int(self._lines[index])

    def where(self, index: int) -> str:
        """ "file:line" of a row. IndexError for one that is not there."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self.path}, which has {len(self)}")
        return f"{self.path}:{self.line(index)}"

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """(row, "file:line"); SampleError if the line is no JSON object or beyond the limits."""
        where = self.where(index)
        return parse_row(self.raw(index), where, self.limits), where

    def raw(self, index: int) -> bytes:
        """The bytes of a row's line; of one beyond the limit of bytes, as many as show that."""
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        with open(self.path, "rb", buffering=0) as file:
            if (size := os.fstat(file.fileno()).st_size) != self.num_bytes:
                raise self._changed(f"it had {self.num_bytes} bytes, now {size}")
            # With the byte before it, which must end another line. Blank lines may follow the row.
            before = 1 if begin else 0
            want = min(end - begin, self.limits.max_bytes + 1)
            found = os.pread(file.fileno(), before + want, begin - before)
        line, newline, _ = found[before:].partition(b"\n")
        if found[:before] not in (b"", b"\n") or not (newline or len(line) == want):
            raise self._changed(f"byte {begin} is no longer the start of a line")
        return line + newline

    def _changed(self, how: str) -> OSError:
        return OSError(f"{self.path} has changed: {how}")


def scan(path: str) -> tuple[dict, Arrays]:
    """Where the rows of a file begin, in one pass and bounded memory besides the result.

    About: bytes and sha256. Arrays: offsets (rows + 1,), and lines (rows,) if any line is blank.
    """
    digest, pieces = hashlib.sha256(), []
    begin, has_text, size = 0, False, 0
    """Of the line that the block begins in the middle of."""
    with open(path, "rb", buffering=0) as file:
        for block in _blocks(file):
            digest.update(block)
            starts_L, text_L, begin, has_text = _lines_of(block, size, begin, has_text)
            pieces.append((starts_L, text_L))
            size += len(block)
    pieces.append((np.array([begin]), np.array([has_text])))
    starts, is_row = (np.concatenate(column) for column in zip(*pieces, strict=True))
    arrays = {"offsets": np.append(starts[is_row], size).astype(np.int64)}
    if not is_row[:-1].all():
        arrays["lines"] = (np.flatnonzero(is_row) + 1).astype(np.int64)
    return {"bytes": size, "sha256": digest.hexdigest()}, arrays


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _lines_of(block: bytes, at: int, begin: int, has_text: bool) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Of the lines that end in a block: where they begin and whether there is text on them; then the same of
    the line that goes on behind it. `at`: where the block stands in the file."""
    letters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(letters == NEWLINE)
    if not len(ends):
        return ends, ends.astype(bool), begin, has_text or bool(IS_TEXT[letters].any())
    firsts = np.append(0, ends + 1)
    texts = np.maximum.reduceat(np.append(IS_TEXT[letters], 0), firsts).astype(bool)
    texts[0] |= has_text
    starts = np.append(begin, at + ends + 1)
    return starts[:-1], texts[:-1], int(starts[-1]), bool(texts[-1])
