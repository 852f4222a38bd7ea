"""Lines of a manifest in the making: what rows say (RowsPiece), what media are (MediaPiece), both joined."""

import io
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from quicksviewer.data.manifest import LINE, MEDIUM, VIDEO_KEYS, tokens_at
from quicksviewer.data.preprocess import MARK_OF, MediumRef, SampleError, parse_sample
from quicksviewer.data.sources import open_source
from quicksviewer.survey.crew import alone
from quicksviewer.survey.probe import ProbeSettings, probe
from quicksviewer.survey.uids import Uids
from quicksviewer.utils.data_util import RootedPath, VideoInfo
from quicksviewer.utils.registry import require
from quicksviewer.utils.stores import StoredPath

PLACE = {"bound": "string", "root": "string", "inner": "string"}
"""How the path of a medium is bound: a class of BOUND, what it is bound to, and its name there."""
BOUND = {"stored": StoredPath, "rooted": RootedPath}
SAID = LINE | PLACE | {"timestamps": "times", "error": "string"}
"""Columns of a piece of rows."""
PROBED = {"path": "string", "kind": "string"} | MEDIUM
"""Columns of a piece of media."""
LICENCE = ("licence", "license")
"""Keys of a row's metadata."""
GRACE = 60
"""Seconds that a medium may take beyond its decoder's before its process ends itself."""


@dataclass(frozen=True)
class RowsPiece:
    """Rows of one source: its number, how it is opened, which rows; the processor's folder, or None."""

    source: int
    place: tuple[str, str | None, str | None]
    rows: tuple[int, ...]
    licence: str | None
    model: str | None


@dataclass(frozen=True)
class MediaPiece:
    """Media, as (path, kind), and how they are looked at."""

    media: tuple[tuple[str, str], ...]
    settings: ProbeSettings


def table_bytes(lines: Iterable[dict], columns: dict[str, str]) -> bytes:
    """Lines as a parquet file in memory."""
    arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    buffer = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(lines), schema=arrow_schema(columns)), buffer)
    return buffer.getvalue()


def arrow_schema(columns: dict[str, str]):
    """The arrow schema of columns by the names of their types."""
    arrow = require("pyarrow", "data")
    kinds = {"times": arrow.list_(arrow.float64())}
    return arrow.schema([(name, kinds.get(kind) or getattr(arrow, kind)()) for name, kind in columns.items()])


def read_piece(path: Path):
    """A piece as a pyarrow Table."""
    return require("pyarrow.parquet", "data").read_table(path)


# What rows say


@lru_cache(maxsize=8)
def _source(place: tuple):
    return open_source(*place)


@lru_cache(maxsize=1)
def read_processor(model: str):
    """The processor of a model's folder."""
    from quicksviewer.model.processor import QuicksviewerProcessor

    return QuicksviewerProcessor.from_pretrained(model)


def rows_bytes(piece: RowsPiece) -> bytes:
    """The lines of some rows: SAID."""
    return table_bytes((line for row in piece.rows for line in _lines_of(piece, row)), SAID)


def _lines_of(piece: RowsPiece, row: int) -> Iterator[dict]:
    source = _source(piece.place)
    line = dict.fromkeys(SAID) | {"source": piece.source, "row": row, "slot": 0}
    line |= {"where": source.where(row), "licence": piece.licence}
    try:
        record, where = source[row]
        sample = parse_sample(record, where)
        line |= {"sample": sample.uid, "licence": _licence(record) or piece.licence}
        line["label"] = sample.source or Path(where.rpartition(":")[0]).stem
        line["text_tokens"] = _text_tokens(sample, where, piece.model)
    except SampleError as error:
        yield line | {"error": str(error)}
        return
    yield from ({**line, "slot": slot, **_said(ref)} for slot, ref in enumerate(sample.media))
    if not sample.media:
        yield line


def without_twice(said, uids: Uids):
    """A Table of SAID in which rows whose id another row of their source has taken say so as their error."""
    arrow, errors = require("pyarrow", "data"), []
    names = ("source", "row", "sample", "where", "error")
    for source, row, uid, where, error in zip(*(said[name].to_pylist() for name in names), strict=True):
        if error is None and (first := uids.first(str(source), uid, row)) != row:
            error = f"{where}: uid {uid!r} is that of row {first} (from 0)"
        errors.append(error)
    place = said.column_names.index("error")
    return said.set_column(place, "error", arrow.array(errors, arrow.string()))


def _licence(record: dict) -> str | None:
    metadata = record.get("metadata") or {}
    return next((metadata[key] for key in LICENCE if isinstance(metadata.get(key), str)), None)


def _text_tokens(sample, where: str, model: str | None) -> int | None:
    try:
        return None if model is None else read_processor(model).text_length(sample.turns)
    except ValueError as error:
        raise SampleError(where, str(error)) from error


def _said(ref: MediumRef) -> dict:
    path = ref.path
    said = {"path": str(path), "kind": ref.kind, "start": ref.start, "end": ref.end}
    said["timestamps"] = None if ref.timestamps is None else list(ref.timestamps)
    if isinstance(path, StoredPath):
        return said | {"bound": "stored", "root": path.store, "inner": path.name}
    if isinstance(path, RootedPath):
        return said | {"bound": "rooted", "root": path.root, "inner": path.path}
    return said


def bound_path(bound: str | None, root: str | None, inner: str | None, path: str) -> str:
    """The path of a medium as its row gave it."""
    return path if bound is None else BOUND[bound](root, inner)


# What media are


def media_bytes(piece: MediaPiece) -> bytes:
    """The lines of some media: PROBED."""
    return table_bytes((_probed(path, kind, piece.settings) for path, kind in piece.media), PROBED)


def guarded_media_bytes(piece: MediaPiece) -> bytes:
    """The same, for a process that may be lost: it ends itself where it hangs."""
    return table_bytes((_guarded(path, kind, piece.settings) for path, kind in piece.media), PROBED)


def _probed(path: str, kind: str, settings: ProbeSettings) -> dict:
    return {"path": str(path), "kind": kind} | probe(path, kind, settings)


def _guarded(path: str, kind: str, settings: ProbeSettings) -> dict:
    signal.setitimer(
        signal.ITIMER_REAL, settings.seconds + GRACE
    )  # nobody handles SIGALRM: it ends the process
    try:
        return _probed(path, kind, settings)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def media_bytes_carefully(piece: MediaPiece) -> bytes:
    """The same, each medium in a process of its own: one that ends it is unusable."""
    return table_bytes((_alone(path, kind, piece.settings) for path, kind in piece.media), PROBED)


def _alone(path: str, kind: str, settings: ProbeSettings) -> dict:
    try:
        return alone(_guarded, path, kind, settings)
    except BrokenProcessPool:
        said = dict.fromkeys(PROBED) | {"path": str(path), "kind": kind}
        return said | {"error": f"{path}: looking at it crashes or hangs"}


# Both joined


def joined(said, media, line_of: dict[tuple[str, str], int], processor, budgets: list[int], schema):
    """A piece of rows (a Table of SAID) with its media (a Table of PROBED, by (path, kind)): a Table of the
    manifest's schema."""
    arrow = require("pyarrow", "data")
    lines = said.to_pylist()
    places = [line_of.get((line["path"], line["kind"])) for line in lines]
    known = media.take(arrow.array(places, arrow.int64()))
    counted = [_counted(*pair, processor, budgets) for pair in zip(lines, known.to_pylist(), strict=True)]
    columns = {name: said[name] for name in LINE} | {name: known[name] for name in MEDIUM}
    for name in ("pictures", "error", *map(tokens_at, budgets)):
        columns[name] = arrow.array([line[name] for line in counted], schema.field(name).type)
    return arrow.table(columns, schema=schema)


def _counted(line: dict, medium: dict, processor, budgets: list[int]) -> dict:
    """What depends on both: pictures, tokens at every budget, and what is wrong with either."""
    told = {
        "pictures": None,
        "error": line["error"] or medium["error"],
        **{tokens_at(b): None for b in budgets},
    }
    if told["error"] or line["kind"] is None or processor is None:
        return told
    try:
        pictures = PICTURES[line["kind"]](processor, line, medium)
    except ValueError as error:
        return told | {"error": f"{line['where']}: {error}"}
    held = {b: min(pictures, b) if line["kind"] == "video" else pictures for b in budgets}
    tokens = {tokens_at(b): processor.medium_length(MARK_OF[line["kind"]], n) for b, n in held.items()}
    return told | tokens | {"pictures": pictures}


def _frames(processor, line: dict, medium: dict) -> int:
    info = VideoInfo(path=line["path"], **{name: medium[name] for name in VIDEO_KEYS})
    return processor.count_frames(info, line["start"], line["end"], line["timestamps"])


PICTURES = {
    "video": _frames,
    "image": lambda processor, _, medium: processor.count_pictures(medium["width"], medium["height"]),
}
