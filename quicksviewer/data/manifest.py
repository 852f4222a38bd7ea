"""The manifest: what is known of every row and every medium of a mixture, in one parquet file.

`quicksviewer data index` writes it (survey/index.py); lengths, packing and plans read it and open no medium.
A line is one medium of one row, in the order of sources, rows and media; a row without media has one line
with no `kind`. `error` says why a row or a medium cannot be used. SCHEMA has the columns.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quicksviewer.data.mixture import Mixture
from quicksviewer.utils.config import build
from quicksviewer.utils.data_util import MediaError, VideoInfo
from quicksviewer.utils.registry import require

VERSION = 2
KEY = b"quicksviewer"
"""Of the parquet file's metadata: version, sources, settings."""
KINDS = ("image", "video")
LINE = {
    "source": "int32",  # index into the sources of the metadata
    "row": "int64",  # of the source
    "slot": "int32",  # of the medium in its row
    "sample": "string",  # uid
    "where": "string",  # "file:line"
    "text_tokens": "int32",  # of the row but for its media
    "licence": "string",
    "label": "string",  # how logs group it: its key `source`, or the name of its file
    "path": "string",  # its path, or STORE::NAME
    "kind": "string",
    "start": "float64",  # of the clip, in seconds; null: from the start
    "end": "float64",
    "pictures": "int32",  # frames of the clip at the processor's rate, or the image with its tiles
}
"""Columns of a row and of what it takes of its medium. Tokens and pictures need a processor."""
MEDIUM = {
    "duration": "float64",
    "fps": "float64",
    "num_frames": "int64",
    "codec": "string",
    "decoder": "string",  # who said all this, as in VideoInfo
    "decoder_version": "string",
    "width": "int32",
    "height": "int32",
    "bytes": "int64",
    "changed": "int64",  # time of change of its file, ns
    "frame_times": "binary",  # pack_times
    "key_frames": "binary",  # pack_counts: their places among the frames
    "decode_megapixels": "float64",  # decoded to get the frames of the plan over all of the video
    "hash": "string",
    "error": "string",
}
"""Columns that are known of a medium alone."""
SCHEMA = LINE | MEDIUM
MICRO = 10**6
MAX_FRAMES = 1 << 24
"""Frames of one video; what unpacks to more is refused."""


def tokens_at(budget: int) -> str:
    """Name of the column with the tokens of a medium that is held to so many frames."""
    return f"tokens_at_{budget}"


# Times in few bytes


def pack_counts(values: Sequence[int] | np.ndarray) -> bytes:
    """Whole numbers as their differences, deflated: regular ones take some dozen bytes, however many."""
    return zlib.compress(np.diff(np.asarray(values, np.int64), prepend=0).astype("<i8").tobytes())


def unpack_counts(packed: bytes) -> np.ndarray:
    """What `pack_counts` packed: int64. ValueError for other bytes."""
    inflater = zlib.decompressobj()
    try:
        letters = inflater.decompress(packed, MAX_FRAMES * 8)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from error
    if inflater.unconsumed_tail or not inflater.eof or len(letters) % 8:
        raise ValueError(f"damaged: it does not unpack to at most {MAX_FRAMES} whole numbers")
    return np.cumsum(np.frombuffer(letters, "<i8"))


def pack_times(seconds: np.ndarray) -> bytes:
    """Seconds, to the microsecond."""
    return pack_counts(np.round(np.asarray(seconds) * MICRO).astype(np.int64))


def unpack_times(packed: bytes) -> np.ndarray:
    """What `pack_times` packed: float64 seconds. ValueError for other bytes."""
    return unpack_counts(packed) / MICRO


# Whose tokens


def processor_digest(processor) -> str:
    """Of all that the columns `text_tokens`, `pictures` and `tokens_at_...` follow from beside the data."""
    told = processor.to_dict()
    media = {key: value for key, value in told["media"].items() if key != "max_frames"}
    words = json.dumps([told | {"media": media}, words_of(processor.tokenizer)], default=str, sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()


def words_of(tokenizer) -> Any:
    """What a tokenizer does, as plain values."""
    return (
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    )


# The file


def schema(budgets: Sequence[int], about: Mapping | None = None):
    """The schema of a parquet file with these budgets and this metadata."""
    arrow = require("pyarrow", "data")
    columns = SCHEMA | {tokens_at(budget): "int32" for budget in budgets}
    found = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in columns.items()])
    return found if about is None else found.with_metadata({KEY: json.dumps(dict(about))})


@dataclass(frozen=True, kw_only=True)
class IndexedSource:
    """A file or store of rows, as the index has seen it."""

    path: str
    media_root: str | None
    licence: str | None
    fingerprint: str
    num_bytes: int


class Manifest:
    """A manifest, of which only the columns that are asked for are read.

    ValueError where the file is missing, damaged, or not one of this version.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        parquet = require("pyarrow.parquet", "data")
        with self._errors():
            self._file = parquet.ParquetFile(self.path, memory_map=True, page_checksum_verification=True)
            about = json.loads(self._file.schema_arrow.metadata[KEY])
            if about["version"] != VERSION:
                raise ValueError(f"it has version {about['version']}, expected {VERSION}")
            self.sources = [build(IndexedSource, one, "a source") for one in about["sources"]]
            self.budgets: list[int] = about["budgets"]
            self.processor: str | None = about["processor"]
            """`processor_digest` of what counted the tokens; None where nothing did."""
            wanted = schema(self.budgets)
            found = self._file.schema_arrow
            if wrong := [
                one.name for one in wanted if one.name not in found.names or found.field(one.name) != one
            ]:
                raise ValueError(f"its columns {', '.join(wrong)} are missing or of another type")

    def _errors(self):
        return _ManifestErrors(self.path)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def read(self, *names: str):
        """Columns as a pyarrow Table of one chunk each. ValueError where they are damaged."""
        with self._errors():
            table = self._file.read(columns=list(names)).combine_chunks()
            table.validate(full=True)
            return table

    def numbers(self, name: str, missing: int = 0) -> np.ndarray:
        """A column of whole numbers: int64 (lines,), with `missing` where it says nothing."""
        compute = require("pyarrow.compute", "data")
        column = compute.fill_null(self.read(name)[name], missing)
        return column.to_numpy().astype(np.int64, copy=False)

    def reals(self, name: str) -> np.ndarray:
        """A column of numbers: float64 (lines,), NaN where it says nothing."""
        compute = require("pyarrow.compute", "data")
        return compute.fill_null(self.read(name)[name], np.nan).to_numpy()

    def is_equal(self, name: str, value: str) -> np.ndarray:
        """Where a column says `value`: bool (lines,)."""
        compute = require("pyarrow.compute", "data")
        found = compute.fill_null(compute.equal(self.read(name)[name], value), False)
        return found.to_numpy()

    def has(self, name: str) -> np.ndarray:
        """Where a column says anything: bool (lines,)."""
        return self.read(name)[name].is_valid().to_numpy()

    @cached_property
    def starts(self) -> np.ndarray:
        """First line of each row, and the number of lines: int64 (rows + 1,)."""
        source, row = self.numbers("source"), self.numbers("row")
        is_first = np.ones(len(source), bool)
        is_first[1:] = (np.diff(source) != 0) | (np.diff(row) != 0)
        return np.append(np.flatnonzero(is_first), len(source))

    @cached_property
    def clip_seconds(self) -> np.ndarray:
        """Length of the part of its video that a line takes: float64 (lines,); 0 where there is no video."""
        whole_L, start_L, end_L = (self.reals(name) for name in ("duration", "start", "end"))
        end_L = np.where(np.isnan(end_L), whole_L, np.minimum(end_L, whole_L))
        return np.nan_to_num(np.maximum(end_L - np.nan_to_num(start_L), 0.0))

    def over_rows(self, values_L: np.ndarray) -> np.ndarray:
        """Sums over the lines of each row: (rows,)."""
        return np.add.reduceat(values_L, self.starts[:-1]) if len(values_L) else values_L

    def rows_of(self, mixture: Mixture) -> np.ndarray:
        """For each index of a mixture the row of the manifest (an index into `starts`): int64 (rows,).

        ValueError for a data set or a row that the manifest does not have.
        """
        firsts = self.starts[:-1]
        source, row = self.numbers("source")[firsts], self.numbers("row")[firsts]
        found = [self._rows_of_part(part, source, row) for part in mixture.parts]
        return np.concatenate(found)

    def _rows_of_part(self, part, source_R: np.ndarray, row_R: np.ndarray) -> np.ndarray:
        mine = np.flatnonzero(source_R == self._number_of(part))
        place = np.full(len(part.source), -1, np.int64)
        if len(mine) and not 0 <= row_R[mine].min() <= row_R[mine].max() < len(place):
            raise ValueError(f"{self.path} is damaged: it has rows that {part.spec.path} has not")
        place[row_R[mine]] = mine
        wanted = place[part.rows()]
        if (missing := np.flatnonzero(wanted < 0)).size:
            row = int(part.rows()[missing[0]])
            raise ValueError(f"{self.path} has not row {row} of {part.spec.path}: index it anew")
        return wanted

    def _number_of(self, part) -> int:
        """Which source a part of a mixture reads: one of the same rows; of several, that of its media."""
        same = part.source.fingerprint, part.source.num_bytes
        found = [at for at, one in enumerate(self.sources) if (one.fingerprint, one.num_bytes) == same]
        if len(found) > 1:
            found = [at for at in found if self.sources[at].media_root == part.spec.media_root]
        if not found:
            raise ValueError(f"{self.path} has nothing of {part.spec.path} as it is now: index it anew")
        return found[0]

    def heads(self) -> "ManifestHeads":
        """What it knows of files, behind the calls of `lengths.Heads`."""
        return ManifestHeads(self)


class _ManifestErrors:
    """Whatever reading a damaged parquet file raises becomes a ValueError that names it."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        arrow = require("pyarrow", "data")
        known = (arrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError)
        if isinstance(error, known):
            raise ValueError(f"{self.path} is no manifest that can be used: {error}") from error


class ManifestHeads:
    """Heads of files from a manifest; no file is opened. MediaError for one that it lists as unusable."""

    def __init__(self, manifest: Manifest):
        self._table = manifest.read("path", *VIDEO_KEYS, "error")
        self._path = manifest.path
        self._line = {path: line for line, path in enumerate(self._table["path"].to_pylist())}

    def video(self, path: str) -> VideoInfo:
        row = self._row(path)
        try:
            return VideoInfo(path=path, **{key: row[key] for key in VIDEO_KEYS})
        except (TypeError, ValueError) as error:
            raise MediaError(path, f"{self._path} has no video there: {error}") from error

    def image(self, path: str) -> tuple[int, int]:
        """Width and height, upright."""
        row = self._row(path)
        return row["width"], row["height"]

    def _row(self, path: str) -> dict:
        if path not in self._line:
            raise MediaError(path, f"is not in {self._path}: index it anew")
        row = {name: self._table[name][self._line[path]].as_py() for name in self._table.column_names}
        if row["error"] is not None and row["width"] is None:
            raise MediaError(path, row["error"].removeprefix(f"{path}: "))
        return row


VIDEO_KEYS = ("duration", "num_frames", "fps", "width", "height", "codec", "decoder", "decoder_version")
"""Columns that are fields of a VideoInfo."""
