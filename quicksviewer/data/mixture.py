"""Which rows a run reads: JSONL files, sliced and repeated, one after the other.

A mixture is written as a line or as a YAML file:

    a.jsonl;b_{x,y}.jsonl*2;c.jsonl#0_1000*0.5

`;` between data sets, `{x,y}` for each of them, `#a_b` for the rows a..b-1, `*k` to repeat what is then left
(of a fraction, always the same rows). A data set is a path, or a name of the registry. In YAML:

    datasets:
      - {name: activitynet, repeat: 2}
      - {path: c.jsonl, slice: [0, 1000], media_root: clips}

and the registry is a mapping from names to `{path, media_root}`. Paths are used as they are written.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quicksviewer.data.preprocess import SampleError
from quicksviewer.utils.config import build, load_mapping
from quicksviewer.utils.registry import lookup

# What a mixture says


@dataclass(frozen=True)
class DatasetSpec:
    """Rows start..stop-1 of a JSONL file (stop None: to its end), `repeat` times.

    `media_root`: where the paths of media that are not absolute start; None leaves them as they are.
    """

    path: str
    repeat: float = 1.0
    start: int = 0
    stop: int | None = None
    media_root: str | None = None

    def __post_init__(self):
        if not self.path:
            raise ValueError("a data set needs a path")
        if not 0 < self.repeat < math.inf:
            raise ValueError(f"repeat must be more than 0, got {self.repeat}")
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(f"slice must have 0 <= start < stop, got {self.start} and {self.stop}")


@dataclass(frozen=True)
class RegistryEntry:
    """Where a data set with a name lies."""

    path: str
    media_root: str | None = None


@dataclass(frozen=True)
class MixtureRow:
    """One data set in a YAML mixture: by `name` in the registry, or by `path`."""

    name: str | None = None
    path: str | None = None
    repeat: float = 1.0
    slice: tuple[int, int] | None = None
    media_root: str | None = None

    def __post_init__(self):
        if (self.name is None) == (self.path is None):
            raise ValueError("give a name of the registry or a path, and not both")


@dataclass(frozen=True)
class MixtureFile:
    """A YAML mixture."""

    datasets: tuple[MixtureRow, ...]

    def __post_init__(self):
        if not self.datasets:
            raise ValueError("datasets is empty")


Registry = Mapping[str, RegistryEntry]


def load_registry(path: str | os.PathLike) -> dict[str, RegistryEntry]:
    """The registry that a YAML file holds: name -> {path, media_root}."""
    rows = load_mapping(path)
    return {name: build(RegistryEntry, row, f"{path} > {name}") for name, row in rows.items()}


def parse_mixture(
    text: str | os.PathLike, registry: Registry | str | os.PathLike | None = None
) -> tuple[DatasetSpec, ...]:
    """The data sets of a mixture, in the order written: a line of the mini-language, or a YAML file's path.

    `registry`: names to use, or the path of their YAML file. ValueError names the piece that is wrong.
    """
    if isinstance(registry, str | os.PathLike):
        registry = load_registry(registry)
    registry, text = registry or {}, os.fspath(text)
    if ";" not in text and Path(text).suffix.lower() in (".yaml", ".yml"):
        return _parse_file(text, registry)
    return tuple(spec for piece in text.split(";") for spec in _parse_piece(piece, registry))


def _parse_file(path: str, registry: Registry) -> tuple[DatasetSpec, ...]:
    specs = []
    for place, row in enumerate(build(MixtureFile, load_mapping(path), path).datasets):
        where = f"{path} > datasets[{place}]"
        try:
            entry = RegistryEntry(row.path) if row.name is None else lookup(registry, row.name, "data set")
            start, stop = row.slice or (0, None)
            specs.append(DatasetSpec(entry.path, row.repeat, start, stop, row.media_root or entry.media_root))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return tuple(specs)


SUFFIX = re.compile(r"(?P<repeat>\*(?P<times>\d+(\.\d+)?|\.\d+))|(?P<slice>#(?P<start>\d+)_(?P<stop>\d+))")
"""What may stand behind a path: `*2`, `*0.5`, `#0_1000`."""


def _parse_piece(piece: str, registry: Registry) -> Iterable[DatasetSpec]:
    """The data sets of a piece between semicolons: several where it has braces."""
    try:
        return [_parse_one(one, registry) for one in expand_braces(piece.strip())]
    except ValueError as error:
        raise ValueError(f"mixture piece {piece.strip()!r}: {error}") from error


def _parse_one(text: str, registry: Registry) -> DatasetSpec:
    path = re.split(r"[*#]", text, maxsplit=1)[0]
    said: dict[str, str] = {}
    place = len(path)
    while place < len(text):
        suffix = SUFFIX.match(text, place)
        if suffix is None:
            raise ValueError(f"{text[place:]!r} is neither a repeat (*2, *0.5) nor a slice (#0_1000)")
        found = {key: value for key, value in suffix.groupdict().items() if value is not None}
        if twice := found.keys() & said.keys() & {"repeat", "slice"}:
            raise ValueError(f"two times a {twice.pop()}")
        said |= found
        place = suffix.end()
    entry = registry.get(path) or RegistryEntry(path)
    start, stop = int(said.get("start", 0)), int(said["stop"]) if "stop" in said else None
    return DatasetSpec(entry.path, float(said.get("times", 1)), start, stop, entry.media_root)


def expand_braces(text: str) -> list[str]:
    """`a{x,y}` -> [`ax`, `ay`], as a shell does it: nested, several, left to right. A brace needs a comma."""
    opened = text.find("{")
    if opened < 0:
        if "}" in text:
            raise ValueError("a brace is closed that was not opened")
        return [text]
    if "}" in text[:opened]:
        raise ValueError("a brace is closed that was not opened")
    choices, closed = _choices(text, opened)
    if len(choices) < 2:
        raise ValueError(f"{text[opened : closed + 1]!r} has no comma")
    heads = [text[:opened] + inner for choice in choices for inner in expand_braces(choice)]
    return [head + tail for head in heads for tail in expand_braces(text[closed + 1 :])]


def _choices(text: str, opened: int) -> tuple[list[str], int]:
    """What stands between the commas of the brace at `opened`, and where the brace is closed."""
    depth, choices, begin = 0, [], opened + 1
    for place in range(opened, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0 or (depth == 1 and text[place] == ","):
            choices.append(text[begin:place])
            begin = place + 1
        if depth == 0:
            return choices, place
    raise ValueError("a brace is opened and not closed")


# What the files hold


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is set twice")
    return values


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """The object on a line of a JSONL file; SampleError with `where` and the column if there is none."""
    try:
        row = json.loads(line.decode("utf-8").rstrip(), object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise SampleError(where, f"not readable as JSON, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise SampleError(where, f"not UTF-8, byte {error.start + 1} of the line") from error
    except (ValueError, RecursionError) as error:
        raise SampleError(where, f"not readable as JSON: {error}") from error
    if not isinstance(row, dict):
        raise SampleError(where, f"a row must be an object, got {type(row).__name__}")
    return row


class JsonlIndex:
    """The rows of a JSONL file, read one at a time by byte offset. Lines without text are not rows.

    One scan finds the offsets and `sha256`. No file stays open, so that an index may be pickled and forked.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        offsets, lines, offset, digest = [], [], 0, hashlib.sha256()
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if not line.isspace():
                    offsets.append(offset)
                    lines.append(number)
                offset += len(line)
        self.offsets = np.array(offsets, dtype=np.int64)
        self.lines = np.array(lines, dtype=np.int64)
        self.num_bytes, self.sha256 = offset, digest.hexdigest()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """(row, "file:line"); SampleError if the line is no JSON object."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self.path}, which has {len(self)}")
        where = f"{self.path}:{self.lines[index]}"
        with open(self.path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) != self.num_bytes:
                raise OSError(f"{self.path} has changed: it had {self.num_bytes} bytes, now {size}")
            file.seek(int(self.offsets[index]))
            return parse_row(file.readline(), where), where


# What a run reads


def spread_subset(num_rows: int, num_kept: int) -> np.ndarray:
    """`num_kept` of the rows 0..num_rows-1, ascending int64, without a pattern in them.

    A pure function, the same everywhere; of two subsets of the same rows the smaller lies in the larger.
    """
    # splitmix64 of the row number (Steele, Lea, Flood 2014); the rows with the smallest values are kept.
    mixed = np.arange(1, num_rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order = np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")
    return np.sort(order[:num_kept]).astype(np.int64)


MEDIA_KEYS = ("image", "video", "video_id")


def with_media_root(record: dict[str, Any], root: str | None) -> dict[str, Any]:
    """The row with its relative media paths put under `root`. Values of a wrong type are left as they are."""
    if root is None:
        return record

    def rooted(value):
        if isinstance(value, list):
            return [rooted(item) for item in value]
        return os.path.join(root, value) if isinstance(value, str) and value else value

    return record | {key: rooted(record[key]) for key in MEDIA_KEYS if key in record}


class _Part:
    """The rows that one spec takes from its file."""

    def __init__(self, spec: DatasetSpec, index: JsonlIndex):
        stop = len(index) if spec.stop is None else spec.stop
        if not spec.start < stop <= len(index):
            raise ValueError(f"{spec.path}: no slice {spec.start}..{stop}, the file has {len(index)} rows")
        self.spec, self.index = spec, index
        self.num_rows = stop - spec.start
        self.num_whole = int(spec.repeat) * self.num_rows
        """Rows of the whole repeats; the fraction that is left comes after them."""
        self.extra = spread_subset(self.num_rows, round(spec.repeat % 1 * self.num_rows))
        if not len(self):
            raise ValueError(f"{spec.path}: repeat {spec.repeat} of {self.num_rows} rows leaves none")

    def __len__(self) -> int:
        return self.num_whole + len(self.extra)

    def row(self, index: int) -> int:
        """The row of the file that stands at `index` of this part."""
        inside = index % self.num_rows if index < self.num_whole else self.extra[index - self.num_whole]
        return self.spec.start + int(inside)


class Mixture:
    """Rows of several data sets, one data set after the other. Shuffling is the sampler's work."""

    def __init__(self, specs: Iterable[DatasetSpec]):
        self.specs = tuple(specs)
        indexes = {path: JsonlIndex(path) for path in dict.fromkeys(spec.path for spec in self.specs)}
        self.parts = [_Part(spec, indexes[spec.path]) for spec in self.specs]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        if not self.parts:
            raise ValueError("a mixture needs a data set")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """(row, "file:line"), with the row's media under the `media_root` of its data set."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a mixture of {len(self)}")
        place = int(np.searchsorted(self.ends, index, side="right"))
        part = self.parts[place]
        record, where = part.index[part.row(index - int(self.ends[place]) + len(part))]
        return with_media_root(record, part.spec.media_root), where

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the rows and their order. Where files lie is no part of it: they may be moved."""
        told = [
            [part.spec.repeat, part.spec.start, part.spec.stop, part.index.num_bytes, part.index.sha256]
            for part in self.parts
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()
