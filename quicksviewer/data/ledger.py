"""Rows that cannot be used, in one file that `data check` and training share.

A line (JSON) is one row of the data: where it stands, what is wrong with it, which medium is at fault. Any
number of processes append to the file and learn from it what the others have found; a row stands in it once.

What a line says is believed as long as the row, the file of the medium and the settings that it was judged by
are the same. A repaired file, an edited row or a higher limit is looked at again.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from quicksviewer.data.preprocess import SampleError
from quicksviewer.utils.stores import SEPARATOR
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)


class BadMedium(SampleError):
    """A row whose medium cannot be used. `is_whole`: no part of the file can, whichever frames are asked."""

    def __init__(self, where: str, reason: str, path: str, is_whole: bool):
        super().__init__(where, reason)
        self.path, self.is_whole = path, is_whole


class KnownBad(SampleError):
    """A row that the ledger lists; nothing was decoded to find out."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """One line of the ledger."""

    where: str
    """ "file:line" of the row."""
    reason: str
    uid: str | None = None
    path: str | None = None
    """The medium that is at fault."""
    is_whole: bool = False
    """Every row with this medium is bad, whichever part of it is asked for."""
    judge: str = ""
    """What judged: for a whole medium the decoder, its version and limits, else all settings of the run."""
    row: str | None = None
    """Digest of the row's contents; None where it is no JSON."""
    medium: tuple[int, int, bool] | None = None
    """Size, time of change (ns) and readability of the medium's file; None where there is none."""
    by: str = "train"
    index: int | None = None
    """Of the row in the mixture that was read."""
    step: int | None = None
    """The optimizer step for which it was drawn, counted from 0."""
    rank: int | None = None
    worker: int | None = None

    def __post_init__(self):
        if not isinstance(self.where, str) or not isinstance(self.reason, str):
            raise ValueError(f"where and reason are texts, got {self.where!r} and {self.reason!r}")
        if not isinstance(self.path, str | None):
            raise ValueError(f"path is a text or absent, got {self.path!r}")
        if self.medium is not None:
            object.__setattr__(self, "medium", tuple(self.medium))  # JSON knows lists only

    @property
    def line(self) -> tuple[str, str]:
        """Which row it is, however its file was named."""
        path, _, number = self.where.rpartition(":")
        return os.path.abspath(path), number

    @property
    def finding(self) -> tuple:
        """Lines that agree in this say the same."""
        return self.line, self.row, self.path, self.medium, self.judge, self.is_whole

    def is_still_so(self, record: dict | None, judges: tuple[str, str]) -> bool:
        """Whether row, medium and judge are those of the line. `judges`: of a whole medium, of a row."""
        return (
            self.judge in judges
            and (record is None or self.row == digest(record))
            and (self.path is None or self.medium == state_of(self.path))
        )


def digest(contents: Any) -> str:
    """Of anything that JSON can hold."""
    text = json.dumps(contents, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def state_of(path: str) -> tuple[int, int, bool] | None:
    """Size, time of change and readability of a medium's file, or of the store that it lies in, so that a
    repaired one is known; None where there is none."""
    place, _, _ = path.partition(SEPARATOR)
    try:
        found = [os.stat(place)]
        if os.path.isdir(place):  # a store of several files
            found = [entry.stat() for entry in os.scandir(place)]
    except (OSError, ValueError):  # a NUL in a path is a ValueError
        return None
    changed = max((status.st_mtime_ns for status in found), default=0)
    return sum(status.st_size for status in found), changed, os.access(place, os.R_OK)


class Ledger:
    """The bad rows that are known, and the file they stand in (or memory alone, for `path` None).

    Cheap to ask: one `stat` of the file, and its new lines when others have written some. No file stays open,
    so that a ledger may be pickled and forked.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = None if path is None else Path(path)
        self._read_to = 0
        self._rows: dict[tuple[str, str], BadRow] = {}
        self._media: dict[str, BadRow] = {}
        self._findings: set[tuple] = set()
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[BadRow]:
        return iter(self._rows.values())

    def known(self, where: str, record: dict, judges: tuple[str, str]) -> BadRow | None:
        """The line about a row, if it still holds."""
        if not self._rows:
            return None
        name, _, number = where.rpartition(":")
        found = self._rows.get((os.path.abspath(name), number))
        return found if found is not None and found.is_still_so(record, judges) else None

    def known_medium(self, path: str, judges: tuple[str, str]) -> BadRow | None:
        """A line that says that no part of a medium can be used, if it still holds."""
        found = self._media.get(os.path.abspath(path)) if self._media else None
        return found if found is not None and found.is_still_so(None, judges) else None

    def refresh(self) -> None:
        """Take in what others have written since."""
        if self.path is None:
            return
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            return
        if size != self._read_to:
            with self.path.open("rb") as file:
                self._take_in(file)

    def add(self, bad: BadRow) -> bool:
        """Write a row down, unless it stands there already: whether it was new."""
        if self.path is None:
            return self._learn(bad)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            self._take_in(file)
            if not self._learn(bad):
                return False
            said = {key: value for key, value in asdict(bad).items() if value is not None}
            line = json.dumps(said, ensure_ascii=True).encode() + b"\n"
            # a process that was killed as it wrote has left a line without an end
            start = b"" if _ends_a_line(file) else b"\n"
            os.write(file.fileno(), start + line)
            return True

    def _take_in(self, file) -> None:
        """Learn the whole lines behind those that are known."""
        if os.fstat(file.fileno()).st_size < self._read_to:
            self._read_to = 0  # the file was replaced: all of it is new
        file.seek(self._read_to)
        for line in file:
            if not line.endswith(b"\n"):
                break  # being written, or torn
            self._read_to += len(line)
            if line.strip():
                self._learn_line(line)

    def _learn_line(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            self._learn(BadRow(**{key: values[key] for key in values if key in FIELDS}))
        except (ValueError, TypeError) as error:
            logger.warning("%s holds a line that is no bad row (%s): %.80r", self.path, error, line)

    def _learn(self, bad: BadRow) -> bool:
        is_new = bad.finding not in self._findings
        self._findings.add(bad.finding)
        self._rows[bad.line] = bad
        if bad.is_whole and bad.path is not None:
            self._media[os.path.abspath(bad.path)] = bad
        return is_new


FIELDS = {field.name for field in fields(BadRow)}


def _ends_a_line(file) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
