"""Which rows a run reads: data sets, sliced and repeated, one after the other.

A mixture is written as a line or as a YAML file:

    a.jsonl;b_{x,y}.jsonl*2;c.jsonl#0_1000*0.5

`;` between data sets, `{x,y}` for each of them, `#a_b` for the rows a..b-1, `*k` to repeat what is then left
(of a fraction, always the same rows). A data set is a path, or a name of the registry. In YAML:

    datasets:
      - {name: activitynet, repeat: 2}
      - {path: c.jsonl, slice: [0, 1000], media_root: clips}

and the registry is a mapping from names to `{path, media_root}`. Paths are used as they are written. What a
path can be is in data/sources: a JSONL file, a folder with a store of frames, archives.
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

from quicksviewer.data.sources import SOURCES, JsonlIndex, Source, open_source, parse_row
from quicksviewer.utils.config import build, load_mapping
from quicksviewer.utils.registry import lookup

__all__ = [
    "DatasetSpec",
    "JsonlIndex",
    "Mixture",
    "MixtureFile",
    "MixtureRow",
    "RegistryEntry",
    "expand_braces",
    "load_registry",
    "parse_mixture",
    "parse_row",
    "spread_subset",
]

# What a mixture says


@dataclass(frozen=True)
class DatasetSpec:
    """Rows start..stop-1 of a data set (stop None: to its end), `repeat` times.

    `media_root`: the folder that the paths of media start at and may not leave, or the store that has them;
    None leaves them as they are. `kind`: a row of SOURCES; None: told from the path.
    """

    path: str
    repeat: float = 1.0
    start: int = 0
    stop: int | None = None
    media_root: str | None = None
    kind: str | None = None
    licence: str | None = None
    """Of rows that name none themselves; the manifest lists it."""

    def __post_init__(self):
        if self.kind is not None:
            lookup(SOURCES, self.kind, "kind of data set")
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
    kind: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class MixtureRow:
    """One data set in a YAML mixture: by `name` in the registry, or by `path`."""

    name: str | None = None
    path: str | None = None
    repeat: float = 1.0
    slice: tuple[int, int] | None = None
    media_root: str | None = None
    kind: str | None = None
    licence: str | None = None

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


SHARED = ("media_root", "kind", "licence")
"""What both a registry and a mixture can say of a data set; the mixture has the last word."""

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
            said = {key: getattr(row, key) or getattr(entry, key) for key in SHARED}
            specs.append(DatasetSpec(entry.path, row.repeat, start, stop, **said))
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
    shared = {key: getattr(entry, key) for key in SHARED}
    return DatasetSpec(entry.path, float(said.get("times", 1)), start, stop, **shared)


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


# What a run reads


def spread_subset(num_rows: int, num_kept: int) -> np.ndarray:
    """`num_kept` of the rows 0..num_rows-1, ascending int64, without a pattern in them.

    A pure function, the same everywhere; of two subsets of the same rows the smaller lies in the larger.
    """
    if not num_kept:
        return np.empty(0, np.int64)
    # splitmix64 of the row number (Steele, Lea, Flood 2014); the rows with the smallest values are kept.
    mixed = np.arange(1, num_rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order = np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")
    return np.sort(order[:num_kept]).astype(np.int64)


class _Part:
    """The rows that one spec takes from its source."""

    def __init__(self, spec: DatasetSpec, source: Source):
        stop = len(source) if spec.stop is None else spec.stop
        if not spec.start < stop <= len(source):
            raise ValueError(f"{spec.path}: no slice {spec.start}..{stop}, the file has {len(source)} rows")
        self.spec, self.source = spec, source
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

    def rows(self) -> np.ndarray:
        """`row` of all indices: int64 (rows of the part,)."""
        whole = np.tile(np.arange(self.num_rows, dtype=np.int64), int(self.spec.repeat))
        return self.spec.start + np.concatenate([whole, self.extra])


class Mixture:
    """Rows of several data sets, one data set after the other. Shuffling is the sampler's work."""

    def __init__(self, specs: Iterable[DatasetSpec]):
        self.specs = tuple(specs)
        places = [(spec.path, spec.kind, spec.media_root) for spec in self.specs]
        sources = {place: open_source(*place) for place in dict.fromkeys(places)}
        self.parts = [_Part(spec, sources[place]) for spec, place in zip(self.specs, places, strict=True)]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        if not self.parts:
            raise ValueError("a mixture needs a data set")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """(row, "file:line"), with the row's media in the `media_root` of its data set."""
        part, row = self.find(index)
        return part.source[row]

    def where(self, index: int) -> str:
        """ "file:line" of a row, without reading it."""
        part, row = self.find(index)
        return part.source.where(row)

    def find(self, index: int) -> tuple[_Part, int]:
        """The part that an index lies in, and the row of its source that stands there."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a mixture of {len(self)}")
        place = int(np.searchsorted(self.ends, index, side="right"))
        part = self.parts[place]
        return part, part.row(index - int(self.ends[place]) + len(part))

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the rows and their order. Where files lie is no part of it: they may be moved."""
        told = [
            [
                part.spec.repeat,
                part.spec.start,
                part.spec.stop,
                part.source.num_bytes,
                part.source.fingerprint,
            ]
            for part in self.parts
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()
