"""Where a pipeline's rows come from: a row of SOURCES for each kind, told from what lies at the path.

All have the interface of `quicksviewer.data.sources.Source`: rows by number with the place that a message can
name, and a fingerprint. None holds its pictures.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quicksviewer.data.preprocess import SampleError
from quicksviewer.data.sources import JsonlIndex, Source
from quicksviewer.utils.manifest import sha256_of
from quicksviewer.utils.places import missing
from quicksviewer.utils.registry import require

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
METADATA = ("metadata.jsonl", "metadata.csv")
"""Rows of an image folder; `file_name` in them is the picture's path in the folder."""


class CsvRows:
    """Rows of a CSV or TSV file, found by byte offset; the first line names the columns. Cells are texts."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.delimiter = "\t" if self.path.lower().endswith((".tsv", ".tab")) else ","
        records = self._records()
        try:
            _, _, self.columns = next(records)
        except StopIteration:
            raise ValueError(f"{self.path} is empty: its first line must name the columns") from None
        if len(set(self.columns)) != len(self.columns) or "" in self.columns:
            raise ValueError(f"{self.path}:1: names of columns must be there and differ, got {self.columns}")
        found = [(offset, line) for offset, line, cells in records if cells]
        self.offsets = np.array([offset for offset, _ in found], dtype=np.int64)
        self.lines = np.array([line for _, line in found], dtype=np.int64)
        self.num_bytes, self.fingerprint = os.path.getsize(self.path), sha256_of(Path(self.path))

    def _records(self) -> Iterator[tuple[int, int, list[str]]]:
        """(byte offset, line, cells) of every record; one may be several lines long."""
        at = {"offset": 0, "line": 0}
        with open(self.path, "rb") as file:

            def lines():
                for raw in file:
                    at["offset"], at["line"] = at["offset"] + len(raw), at["line"] + 1
                    yield self._text(raw, at["line"])

            reader, begin, line = csv.reader(lines(), delimiter=self.delimiter), 0, 1
            try:
                for cells in reader:
                    yield begin, line, cells
                    begin, line = at["offset"], at["line"] + 1
            except csv.Error as error:
                raise ValueError(f"{self.path}:{line}: not readable as CSV: {error}") from error

    def _text(self, raw: bytes, line: int) -> str:
        try:
            return raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SampleError(
                f"{self.path}:{line}", f"not UTF-8, byte {error.start + 1} of the line"
            ) from error

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, index: int) -> str:
        return f"{self.path}:{self.lines[index]}"

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        where = self.where(_checked(index, self))
        stop = self.offsets[index + 1] if index + 1 < len(self) else self.num_bytes
        with open(self.path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != self.num_bytes:
                raise OSError(f"{self.path} has changed: it had {self.num_bytes} bytes, now {size}")
            file.seek(int(self.offsets[index]))
            text = self._text(file.read(int(stop - self.offsets[index])), int(self.lines[index]))
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter))
        if len(cells) != len(self.columns):
            raise SampleError(where, f"{len(cells)} cells, expected {len(self.columns)}: {self.columns}")
        return dict(zip(self.columns, cells, strict=True)), where


class ParquetRows:
    """Rows of a parquet file. A row group is read when one of its rows is asked for, and stays in memory;
    with `in_order` only the last two do, which is enough for who reads in order or nearly so."""

    in_order = False

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        footer = self._open().metadata
        sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.num_bytes, self.fingerprint = os.path.getsize(self.path), sha256_of(Path(self.path))
        self._groups: dict[int, Any] = {}

    def _open(self):
        parquet = require("pyarrow.parquet", "zoo")
        try:
            return parquet.ParquetFile(self.path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path} is no parquet file: {error}") from error

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_groups": {}}

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def where(self, index: int) -> str:
        return f"{self.path}:row {index}"

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        group = int(np.searchsorted(self.ends, _checked(index, self), side="right"))
        if group not in self._groups:
            if self.in_order and len(self._groups) > 1:
                del self._groups[next(iter(self._groups))]
            self._groups[group] = self._open().read_row_group(group)
        table = self._groups[group]
        inside = index - int(self.ends[group]) + len(table)
        return table.slice(inside, 1).to_pylist()[0], self.where(index)


class FolderRows:
    """A folder of pictures: with a metadata file the rows that it holds, else the picture and, as `label`,
    the folder in which it lies."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        names = [name for name in METADATA if (Path(path) / name).is_file()]
        self.rows = open_rows(os.path.join(path, names[0])) if names else None
        self.names = [] if names else _pictures(Path(path))
        if not (self.rows or self.names):
            raise ValueError(f"{self.path} holds no rows: no {' or '.join(METADATA)}, and no pictures")
        told = json.dumps(self.names).encode()
        self.fingerprint = self.rows.fingerprint if names else hashlib.sha256(told).hexdigest()
        self.num_bytes = self.rows.num_bytes if names else len(told)

    def __len__(self) -> int:
        return len(self.names if self.rows is None else self.rows)

    def where(self, index: int) -> str:
        return self.rows.where(index) if self.rows is not None else os.path.join(self.path, self.names[index])

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        if self.rows is None:
            name = self.names[_checked(index, self)]
            label = Path(name).parent.name or None
            return {"image": name, "label": label}, self.where(index)
        record, where = self.rows[index]
        if "file_name" in record:
            record = {"image": record["file_name"], **record}
        return record, where


class HubRows:
    """A data set that Hugging Face `datasets` has saved to disk. Pictures stay as their encoded bytes."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        datasets = require("datasets", "zoo")
        data = datasets.load_from_disk(self.path)
        if isinstance(data, datasets.DatasetDict):
            known = ", ".join(os.path.join(self.path, name) for name in data)
            raise ValueError(f"{self.path} holds several data sets; name one of them: {known}")
        for name, feature in data.features.items():
            if isinstance(feature, datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
        files = sorted(Path(self.path).glob("*.arrow"))
        self.data, self.num_bytes = data, sum(file.stat().st_size for file in files)
        digests = "".join(sha256_of(file) for file in files)
        self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.data)

    def where(self, index: int) -> str:
        return f"{self.path}:row {index}"

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        return self.data[_checked(index, self)], self.where(index)


class Joined:
    """The rows of several sources, one behind the other."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)
        self.ends = np.cumsum([len(source) for source in sources], dtype=np.int64)
        self.num_bytes = sum(source.num_bytes for source in sources)
        told = " ".join(source.fingerprint for source in sources)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _at(self, index: int) -> tuple[Source, int]:
        place = int(np.searchsorted(self.ends, _checked(index, self), side="right"))
        source = self.sources[place]
        return source, index - int(self.ends[place]) + len(source)

    def where(self, index: int) -> str:
        source, inside = self._at(index)
        return source.where(inside)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        source, inside = self._at(index)
        return source[inside]

    def folder(self, index: int) -> str:
        """The folder in which relative paths of a row start."""
        path = self._at(index)[0].path
        return path if os.path.isdir(path) else os.path.dirname(path) or "."


def _is_hub(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _ends(*endings: str) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.name.lower().endswith(endings)


SOURCES: dict[str, tuple[Callable[[Path], bool], Callable[[str], Source]]] = {
    "jsonl": (_ends(".jsonl", ".ndjson"), JsonlIndex),
    "csv": (_ends(".csv", ".tsv", ".tab"), CsvRows),
    "parquet": (_ends(".parquet"), ParquetRows),
    "datasets": (_is_hub, HubRows),
    "image folder": (Path.is_dir, FolderRows),
}
"""Kind -> how it is told from a path, and what reads it. The first row that fits wins."""


def open_rows(path: str | os.PathLike) -> Source:
    """The rows at a path. ValueError where there is nothing, or nothing of a known kind."""
    path = os.fspath(path)
    if not os.path.exists(path):
        raise ValueError(missing("data", path))
    for fits, reader in SOURCES.values():
        if fits(Path(path)):
            return reader(path)
    raise ValueError(f"{path} is no source of rows. Known: JSONL, CSV, TSV, parquet, {', '.join(SOURCES)}")


def open_joined(paths: Sequence[str], in_order: bool = False) -> Joined:
    """The rows of one or several paths. `in_order`: they will be read nearly so, and need not stay in memory.
    ValueError where there are none."""
    joined = Joined([open_rows(path) for path in paths])
    for source in joined.sources:
        if isinstance(source, ParquetRows):
            source.in_order = in_order
    if not len(joined):
        raise ValueError(f"{', '.join(paths)}: no rows")
    return joined


def _pictures(folder: Path) -> list[str]:
    found = [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _checked(index: int, source) -> int:
    if not 0 <= index < len(source):
        raise IndexError(f"row {index} of a source of {len(source)}")
    return index
