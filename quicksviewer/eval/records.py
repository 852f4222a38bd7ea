"""The records of a run in the making: a folder beside its result, from which a stopped run goes on.

    settings.json             what the run is; records of other settings are refused
    records-1-of-4.jsonl      batches that process 1 has finished, a line each, written at once
    judged.jsonl              verdicts of a judge, a line each

A line that a kill has cut short is cut off and computed again. When the result is there, the folder goes.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quicksviewer.utils.config import save_json


class Records:
    """The folder of a run. `folder` need not exist yet."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, settings: dict) -> None:
        """Write the settings. Where there are records, they must be of the same: ValueError that names what
        differs."""
        path = self.folder / "settings.json"
        if path.is_file() and self.count():
            before = json.loads(path.read_text(encoding="utf-8"))
            keys = sorted({*before, *settings})
            if changed := [key for key in keys if before.get(key) != settings.get(key)]:
                raise ValueError(
                    f"{self.folder} holds records of a run that was stopped and had another "
                    f"{', '.join(changed)}; give --fresh to throw them away, or another --output"
                )
        save_json(path, settings)

    def discard(self) -> None:
        """Throw away what is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> dict[int, dict]:
        """Number of a batch -> its line, over all processes of all attempts."""
        lines = (line for path in sorted(self.folder.glob("records-*.jsonl")) for line in _lines(path))
        return {line["batch"]: line for line in lines}

    def count(self) -> int:
        """Batches that are finished."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("records-*.jsonl"))

    def verdicts(self) -> list[dict]:
        return list(_lines(self.folder / "judged.jsonl"))

    @contextmanager
    def writer(self, name: str) -> Iterator["Writer"]:
        """A file of lines to add to. ValueError where another process is adding to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.jsonl").open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process is writing {file.name}: is the same run going on?"
                ) from None
            _cut_torn_line(file)
            yield Writer(file)

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """One process at a time. False for whoever comes when another one has removed the folder."""
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield self.folder.is_dir()
        finally:
            os.close(folder)


class Writer:
    """Adds lines, each of which is on the disk when `write` returns."""

    def __init__(self, file):
        self._file = file

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _lines(path: Path) -> Iterator[dict]:
    """The whole lines of a file."""
    if path.is_file():
        yield from (
            json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
        )


def _cut_torn_line(file) -> None:
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
