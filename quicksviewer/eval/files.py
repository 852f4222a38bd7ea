"""Annotation files as they are published, found in a folder and read as rows that know where they stand."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quicksviewer.data.preprocess import SampleError
from quicksviewer.utils.registry import require

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")


def find_file(folder: Path, *patterns: str) -> Path:
    """The file that the first pattern with a match names; of several the first by name. ValueError that lists
    what was looked for."""
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found[0]
    raise ValueError(f"{folder} has none of {', '.join(patterns)}; --data names the folder of a benchmark")


def find_folder(folder: Path, *names: str) -> Path:
    """The first of these folders that is there, else the folder itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def find_video(folder: Path, *stems: str) -> str:
    """The path of a video by its name with or without a suffix. Where there is none, the path at which it
    should be: the item is then lost by that name."""
    for stem in stems:
        for name in (stem, *(f"{stem}{suffix}" for suffix in VIDEO_SUFFIXES)):
            if (path := folder / name).is_file():
                return str(path)
    return str(folder / (stems[0] if Path(stems[0]).suffix in VIDEO_SUFFIXES else f"{stems[0]}.mp4"))


class Row(dict):
    """A row of a file, with the place where it stands: "file:number"."""

    where: str

    def need(self, *keys: str) -> list[Any]:
        """The values under these keys. SampleError where one is missing or empty."""
        if missing := [key for key in keys if self.get(key) is None or self.get(key) == ""]:
            raise SampleError(self.where, f"{', '.join(missing)} missing or empty; it has {', '.join(self)}")
        return [self[key] for key in keys]


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a .json (a list of objects), .csv or .parquet file. ValueError for one that cannot be read, or
    holds no rows."""
    rows = READERS[path.suffix](path)
    if not rows:
        raise ValueError(f"{path} holds no questions")
    for number, values in enumerate(rows, start=1):
        where = f"{path}:{number}"
        if not isinstance(values, dict):
            raise SampleError(where, f"expected an object, got {type(values).__name__}")
        row = Row(values)
        row.where = where
        yield row


def _json(path: Path) -> list:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    return rows


def _csv(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _parquet(path: Path) -> list[dict]:
    require("pyarrow", "data")
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        return read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path} is no parquet file: {error}") from error


READERS = {".json": _json, ".csv": _csv, ".parquet": _parquet}
"""Suffix -> function that gives all rows; annotation files are small."""


def letter_of(row: Row, place: Any, options: Sequence[str]) -> str:
    """The letter of the option with this number, counted from zero. SampleError where there is none."""
    from quicksviewer.eval.letters import LETTERS

    if not str(place).isdigit() or not 0 <= int(place) < len(options) <= len(LETTERS):
        raise SampleError(row.where, f"no option number {place!r} among {len(options)}")
    return LETTERS[int(place)]


def letter_of_text(row: Row, answer: str, options: Sequence[str]) -> str:
    """The letter of the option with these words. SampleError where none has them, or several."""
    places = [place for place, option in enumerate(options) if str(option).strip() == str(answer).strip()]
    if len(places) != 1:
        raise SampleError(row.where, f"the answer {answer!r} stands {len(places)} times among {options}")
    return letter_of(row, places[0], options)
