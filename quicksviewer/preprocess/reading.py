"""Rows of parquet, JSON, JSONL and CSV files, in pieces that any process can read alone.

The plan scans a text file once and keeps byte offsets; no file is ever held in memory as a whole.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from quicksviewer.preprocess.files import Place
from quicksviewer.preprocess.schema import Kind, check_columns
from quicksviewer.utils.registry import lookup, require

BOM = b"\xef\xbb\xbf"
BLOCK = 1 << 22
MAX_ELEMENT = 1 << 28
"""Bytes of one element of a JSON file; what is larger is no row but a broken file."""
BATCH_ROWS = 8
"""Rows of a parquet file in memory at a time: a row may hold a film."""


@dataclass(frozen=True)
class Piece:
    """Rows of one file that lie side by side: bytes begin..end of a text file, row groups of a parquet."""

    url: str
    name: str
    """Path relative to the folder of all inputs."""
    kind: str
    first: int
    """Number of its first row in the file."""
    rows: int
    begin: int = 0
    end: int = 0
    groups: tuple[int, ...] = ()
    take: tuple[int, int] | None = None
    """Only these of its rows, counted from its first."""


@dataclass(frozen=True)
class Shard:
    """What one task reads."""

    number: int
    pieces: tuple[Piece, ...]


class Unreadable(ValueError):
    """Stands in the place of a row that could not be read."""


# Planning


def _lines_cut(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, rows) of runs of `size` lines; empty lines are no rows."""
    begin = end = rows = 0
    for line in file:
        end += len(line)
        rows += bool(line.strip())
        if rows == size:
            yield begin, end, rows
            begin, rows = end, 0
    if rows:
        yield begin, end, rows


def _csv_cut(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """As `_lines_cut`, of CSV records behind the header: a quoted line break belongs to its record."""
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for line in file:
            read += len(line)
            yield line.decode("utf-8-sig")

    reader = csv.reader(texts())
    next(reader, None)
    begin, rows = read, 0
    for record in reader:
        rows += bool(record)
        if rows == size:
            yield begin, read, rows
            begin, rows = read, 0
    if rows:
        yield begin, read, rows


class _Scanner:
    """Walks over the elements of a JSON list or object. Bytes are taken as Latin-1, one letter a byte."""

    def __init__(self, file: BinaryIO):
        self.file, self.text, self.base, self.at, self.ended = file, "", 0, 0, False
        self.decode = json.JSONDecoder(strict=False).raw_decode

    def grow(self) -> None:
        self.base, self.text, self.at = self.base + self.at, self.text[self.at :], 0
        if len(self.text) > MAX_ELEMENT:
            raise ValueError(f"byte {self.base}: no JSON within {MAX_ELEMENT} bytes")
        block = self.file.read(max(BLOCK, len(self.text)))
        self.ended = not block
        self.text += block.decode("latin-1")

    def skip(self, letters: str) -> str:
        """Move behind these letters; the next one, "" at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in letters:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.grow()

    def value(self) -> Any:
        """Move behind a value, and give it with its strings in Latin-1."""
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    raise ValueError(f"byte {self.base + error.pos}: {error.msg}") from error
            self.grow()


SPACE = " \t\r\n"


def _json_cut(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """As `_lines_cut`, of the elements of a list or the pairs of an object."""
    scan = _Scanner(file)
    opened = scan.skip(SPACE + BOM.decode("latin-1"))
    if opened not in ("[", "{"):
        raise ValueError(f"expected a list or an object, it starts with {opened!r}")
    scan.at += 1
    begin = rows = end = 0
    closing = "]" if opened == "[" else "}"
    while (letter := scan.skip(SPACE + ",")) != closing:
        if not letter:
            raise ValueError(f"byte {scan.base + scan.at}: the file ends inside its {opened}")
        begin = begin if rows else scan.base + scan.at
        scan.value()
        if opened == "{":
            if scan.skip(SPACE) != ":":
                raise ValueError(f"byte {scan.base + scan.at}: expected a colon")
            scan.at += 1
            scan.skip(SPACE)
            scan.value()
        rows, end = rows + 1, scan.base + scan.at
        if rows == size:
            yield begin, end, rows
            rows = 0
    if rows:
        yield begin, end, rows


def _object_cut(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    yield 0, file.seek(0, os.SEEK_END), 1


CUTS = {
    "jsonl": _lines_cut,
    "csv": _csv_cut,
    "rows": _json_cut,
    "mapping": _json_cut,
    "object": _object_cut,
}
SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".json": "json"}
"""Ending of a file -> kind of a piece; for "json" the converter says which form it has."""


def pieces_of(place: Place, name: str, json_form: str, size: int, schema: Mapping[str, Kind]) -> list[Piece]:
    """The file in pieces of about `size` rows. ValueError with its name when it cannot be read."""
    kind = lookup(SUFFIXES, PurePosixPath(name).suffix.lower(), "ending of a data file")
    kind = json_form if kind == "json" else kind
    try:
        if kind == "parquet":
            return _parquet_pieces(place, name, size, schema)
        pieces, first = [], 0
        with place.open() as file:
            for begin, end, rows in CUTS[kind](file, size):
                pieces.append(Piece(place.url, name, kind, first, rows, begin, end))
                first += rows
        if kind == "csv":
            check_columns(_csv_header(place), schema, place.url)
        return pieces
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(str(error) if place.url in str(error) else f"{place.url}: {error}") from error


def _parquet_pieces(place: Place, name: str, size: int, schema: Mapping[str, Kind]) -> list[Piece]:
    """Whole row groups, so that no task reads what another one reads too."""
    parquet = require("pyarrow.parquet", "data")
    with place.open() as file:
        meta = parquet.ParquetFile(file)
        check_columns(meta.schema_arrow.names, schema, place.url)
        counts = [meta.metadata.row_group(group).num_rows for group in range(meta.num_row_groups)]
    pieces, groups, first = [], [], 0
    for number, _ in enumerate(counts):
        groups.append(number)
        rows = sum(counts[group] for group in groups)
        if rows >= size or (number == len(counts) - 1 and rows):
            pieces.append(Piece(place.url, name, "parquet", first, rows, groups=tuple(groups)))
            groups, first = [], first + rows
    return pieces


def names_of(places: list[Place]) -> list[str]:
    """What each file is called in uids and in the ledger: its path below the folder of all."""
    paths = [place.root for place in places]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def cut_range(pieces: Iterable[Piece], start: int, stop: int | None) -> list[Piece]:
    """The pieces that have rows start..stop-1 of all, told which of their rows to take."""
    kept, seen = [], 0
    for piece in pieces:
        low = max(start - seen, 0)
        high = piece.rows if stop is None else min(stop - seen, piece.rows)
        if low < high:
            take = None if (low, high) == (0, piece.rows) else (low, high)
            kept.append(replace(piece, take=take))
        seen += piece.rows
    return kept


def shards_of(pieces: Iterable[Piece], size: int) -> list[Shard]:
    """Pieces in their order, put together to about `size` rows: many small files make few tasks."""
    shards, bundle = [], []
    for piece in pieces:
        bundle.append(piece)
        if sum(one.rows for one in bundle) >= size:
            shards.append(Shard(len(shards), tuple(bundle)))
            bundle = []
    return [*shards, Shard(len(shards), tuple(bundle))] if bundle else shards


# Reading


def rows_of(piece: Piece, columns: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """(number in the file, row) of a piece; an Unreadable instead of a row that could not be read."""
    place = Place(piece.url)
    rows = READERS[piece.kind](place, piece, list(columns))
    start, stop = piece.take or (0, piece.rows)
    for number, row in islice(enumerate(rows), start, stop):
        yield piece.first + number, row


def _parquet_rows(place: Place, piece: Piece, columns: list[str]) -> Iterator[Any]:
    parquet = require("pyarrow.parquet", "data")
    with place.open() as file:
        table = parquet.ParquetFile(file)
        wanted = [column for column in columns if column in table.schema_arrow.names]
        batches = table.iter_batches(
            BATCH_ROWS, row_groups=list(piece.groups), columns=wanted, use_threads=False
        )
        for batch in batches:
            yield from batch.to_pylist()


def _jsonl_rows(place: Place, piece: Piece, columns: list[str]) -> Iterator[Any]:
    for line in place.read("", piece.begin, piece.end).removeprefix(BOM).split(b"\n"):
        if line.strip():
            try:
                yield json.loads(line, strict=False)
            except (ValueError, RecursionError) as error:
                yield Unreadable(f"no JSON: {error}")


def _csv_header(place: Place) -> list[str]:
    with place.open() as file:
        return next(csv.reader(line.decode("utf-8-sig") for line in file), [])


def _csv_rows(place: Place, piece: Piece, columns: list[str]) -> Iterator[Any]:
    text = place.read("", piece.begin, piece.end).decode("utf-8")
    header = _csv_header(place)
    for record in csv.reader(io.StringIO(text, newline="")):
        if len(record) == len(header):
            yield dict(zip(header, record, strict=True))
        elif record:
            yield Unreadable(f"{len(record)} fields, the header has {len(header)}")


def _json_rows(place: Place, piece: Piece, columns: list[str]) -> Iterator[Any]:
    yield from json.loads(b"[" + place.read("", piece.begin, piece.end) + b"]", strict=False)


def _mapping_rows(place: Place, piece: Piece, columns: list[str]) -> Iterator[Any]:
    text, at = place.read("", piece.begin, piece.end).decode("utf-8"), 0
    decode = json.JSONDecoder(strict=False).raw_decode
    while at < len(text):
        key, at = decode(text, at)
        value, at = decode(text, _skip(text, at, SPACE + ":"))
        at = _skip(text, at, SPACE + ",")
        yield {**value, "_key": key} if isinstance(value, dict) else Unreadable(f"{key!r} is no object")


def _skip(text: str, at: int, letters: str) -> int:
    while at < len(text) and text[at] in letters:
        at += 1
    return at


def _object_rows(place: Place, piece: Piece, columns: list[str]) -> Iterator[Any]:
    try:
        yield {**json.loads(place.read(), strict=False), "_key": PurePosixPath(piece.name).stem}
    except (ValueError, TypeError, RecursionError) as error:
        yield Unreadable(f"no JSON object: {error}")


READERS = {
    "parquet": _parquet_rows,
    "jsonl": _jsonl_rows,
    "csv": _csv_rows,
    "rows": _json_rows,
    "mapping": _mapping_rows,
    "object": _object_rows,
}
