"""One shard of a conversion: read rows, check, convert, settle media, check the samples, write.

A shard's files appear whole, and `done.json` last. The same shard gives the same bytes in any process.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from quicksviewer.data.preprocess import SampleError, parse_sample
from quicksviewer.preprocess.converter import (
    Blob,
    Cached,
    Converter,
    Found,
    Made,
    Row,
    Skip,
    Skipped,
    cache_name,
)
from quicksviewer.preprocess.files import Place
from quicksviewer.preprocess.gif import gif_to_mp4
from quicksviewer.preprocess.reading import Shard, Unreadable, rows_of
from quicksviewer.preprocess.schema import SchemaError, check_row
from quicksviewer.preprocess.tables import find
from quicksviewer.preprocess.utils import EXTENSIONS, check_medium, inside, opened_medium
from quicksviewer.utils.data_util import MediaError, MediaLimits, load_image, open_medium, open_video
from quicksviewer.utils.media import IMAGE_KINDS, VIDEO_KINDS

DONE, LEDGER, INDEX = "done.json", "skipped.jsonl", "index.json"
CHECKS = ("none", "head", "decode")
MEDIA = ("image", "video", "video_id")
KINDS = {"image": IMAGE_KINDS, "video": VIDEO_KINDS}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all shards of a conversion share."""

    converter: str
    name: str
    """Of the output files."""
    output: str
    media_root: str | None = None
    extras: dict[str, str] = field(default_factory=dict)
    """Word -> URL of the further files that the converter asks for."""
    options: dict[str, Any] = field(default_factory=dict)
    """What a person asked of the converter; rows see them among the extras."""
    image_cache: str | None = None
    fields: tuple[str, ...] = MEDIA
    """Keys of samples whose media are looked at."""
    isolation: str = "process"
    """Where `check_media: decode` decodes: see MediaLimits."""
    check_media: str = "head"
    """Files below the media root: "none" trusts them to be there, "head" looks at their first bytes and at
    their structure, "decode" decodes pictures, and of videos three frames."""

    def __post_init__(self):
        if self.check_media not in CHECKS:
            raise ValueError(f"check_media must be one of {', '.join(CHECKS)}, got {self.check_media!r}")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name must be a plain word for files, got {self.name!r}")

    @property
    def work(self) -> Place:
        """Where shards wait until all are done."""
        return Place(self.output) / f".{self.name}.shards"


@dataclass(frozen=True)
class ShardTask:
    """Called in any process; gives what is in its `done.json`."""

    job: Job
    shard: Shard

    @property
    def folder(self) -> str:
        return f"{self.shard.number:06d}"

    def __call__(self) -> dict:
        return read_done(self.job.work, self.folder) or _convert_shard(self)


def read_done(work: Place, folder: str) -> dict | None:
    """The summary of a finished shard; None when it is to be made."""
    name = f"{folder}/{DONE}"
    return json.loads(work.read(name)) if work.exists(name) else None


def to_line(record: dict) -> bytes:
    """A row of a JSONL file."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class Sink:
    """Gathers what a shard writes, in memory: samples are text, and a shard has few of them."""

    def __init__(self, parts: Iterable[str]):
        self.texts = {part: io.BytesIO() for part in parts}
        self.ledger = io.BytesIO()
        self.counts: dict[str, Counter] = {"samples": Counter(), "skipped": Counter()}
        self.rows = {"rows": 0, "used": 0}

    def add(self, made: Made) -> None:
        for part in made.parts:
            self.texts[part].write(to_line(made.sample))
            self.counts["samples"][part] += 1

    def skip(self, file: str, number: int, uid: str | None, skipped: Skipped) -> None:
        self.counts["skipped"][skipped.reason] += 1
        entry = {"file": file, "row": number, "uid": uid, "reason": skipped.reason, "detail": skipped.detail}
        self.ledger.write(to_line(entry))

    def summary(self) -> dict:
        return {**self.rows, **{what: dict(sorted(counts.items())) for what, counts in self.counts.items()}}

    def close(self, work: Place, folder: str) -> dict:
        """Write all files of the shard, its summary last."""
        for part, text in self.texts.items():
            work.write(f"{folder}/part{part}.jsonl", text.getvalue())
        work.write(f"{folder}/{LEDGER}", self.ledger.getvalue())
        summary = self.summary()
        work.write(f"{folder}/{DONE}", to_line(summary))
        return summary


def _convert_shard(task: ShardTask) -> dict:
    converter = find(task.job.converter)
    sink, media = Sink(converter.parts), Media(task.job, converter)
    extras = _extras(tuple(task.job.extras.items())) | task.job.options
    task.job.work.remove(task.folder)  # what a killed process left
    for piece in task.shard.pieces:
        try:
            for number, columns in rows_of(piece, converter.schema):
                sink.rows["rows"] += 1
                row = Row(columns, task.job.name, piece.name, number, extras)
                sink.rows["used"] += _convert_row(row, converter, media, sink)
        except ValueError as error:
            raise ValueError(f"{piece.url}: {error}") from error
    return sink.close(task.job.work, task.folder)


@lru_cache(maxsize=4)
def _extras(urls: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return {word: json.loads(Place(url).read()) for word, url in urls}


def _convert_row(row: Row, converter: Converter, media: "Media", sink: Sink) -> bool:
    """Whether a sample came of it; what did not is in the ledger."""
    used = False
    for result in _results(row, converter):
        if isinstance(result, Made):
            result = media.settle(row, result)
        if isinstance(result, Made):
            used = True
            sink.add(result)
        elif isinstance(result, _Lost):
            sink.skip(row.file, row.number, result.uid, result.skipped)
        else:
            sink.skip(row.file, row.number, None, result)
    return used


@dataclass(frozen=True)
class _Lost:
    """A sample that did not come to be, by name."""

    uid: str
    skipped: Skipped


def _results(row: Row, converter: Converter) -> list[Made | Skipped]:
    if isinstance(row.columns, Unreadable):
        return [Skipped("unreadable", str(row.columns))]
    try:
        columns = check_row(row.columns, converter.schema, f"{row.file}, row {row.number}")
    except SchemaError as error:
        return [Skipped("schema", str(error))]
    results = list(converter.convert(Row(columns, row.prefix, row.file, row.number, row.extras)))
    return results or [Skipped("content", "no sample in it")]


class Media:
    """Turns the media of samples into paths, and refuses those that cannot be used."""

    def __init__(self, job: Job, converter: Converter):
        self.job, self.converter = job, converter
        self.limits = MediaLimits(isolation=job.isolation)
        self.output = Place(job.output)
        self.root = Place(job.media_root) if job.media_root else None
        self.cache = Place(job.image_cache) if job.image_cache else None
        self.row: tuple[str, int] | None = None
        self.names: dict[bytes, str] = {}
        """Of the bytes of this row, and of those that are not written yet:"""
        self.unwritten: dict[str, bytes] = {}

    def settle(self, row: Row, made: Made) -> Made | _Lost:
        """The sample with paths, as data/preprocess.py takes it. Bytes are written when all of it is good."""
        sample = dict(made.sample)
        uid = sample.get("uid") if isinstance(sample.get("uid"), str) else row.uid
        if self.row != (row.file, row.number):
            self.row, self.names, self.unwritten = (row.file, row.number), {}, {}
        try:
            for kind in self.job.fields:
                if kind in sample:
                    sample[kind] = self._all(row, kind[:5], sample[kind])
            parse_sample(json.loads(to_line(sample)), f"{row.file}, row {row.number}")
        except Skip as skip:
            return _Lost(uid, skip.skipped)
        except SampleError as error:
            return _Lost(uid, Skipped("sample", error.reason))
        except ValueError as error:  # a number that JSON does not know
            return _Lost(uid, Skipped("sample", str(error)))
        for name, data in self.unwritten.items():
            self.output.write(name, data)
        self.unwritten = {}
        return Made(sample, made.parts)

    def _all(self, row: Row, kind: str, value: Any) -> Any:
        if isinstance(value, list):
            return [None if item is None else self._one(row, kind, item) for item in value]
        return self._one(row, kind, value)

    def _one(self, row: Row, kind: str, value: Any) -> str:
        if isinstance(value, Cached):
            value = self._from_cache(value.url)
        if isinstance(value, Blob):
            return self._store(row, kind, value.data)
        path = self._indexed(value.key) if isinstance(value, Found) else value
        if self.root is None or not isinstance(path, str):
            return path
        name = self._inside(path)
        if self.converter.gif:
            return self._as_mp4(name)
        self._check(kind, name)
        return path if self.converter.keeps_paths else name

    def _inside(self, path: str) -> str:
        try:
            return inside(self.root, path)
        except ValueError as error:
            raise Skip("medium outside", str(error)) from error

    def _indexed(self, key: str) -> str:
        found = _index(self.job.work.url).get(key, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise Skip("medium ambiguous", f"{key!r} could be {' or '.join(found[:5])}")
        raise Skip("medium missing", f"{key!r} is not below {self.root.url}")

    def _from_cache(self, url: str) -> Blob:
        name = cache_name(url)
        if self.cache is None or not self.cache.exists(name):
            raise Skip("medium not at hand", f"{url}; addresses are not fetched, the cache would have {name}")
        return Blob(self.cache.read(name))

    def _check(self, kind: str, name: str) -> None:
        if self.job.check_media == "none":
            return
        if not self.root.exists(name):
            raise Skip("medium missing", f"{name} is not below {self.root.url}")
        with _refusals():
            check_medium(self.root, name, KINDS[kind], self.limits)
            if self.job.check_media == "decode":
                with opened_medium(self.root, name) as path:
                    DECODE[kind](path, self.limits)

    def _store(self, row: Row, kind: str, data: bytes) -> str:
        """The file that gets these bytes, named by the place of the row; the same bytes of a row once."""
        if data in self.names:
            return self.names[data]
        with _refusals(), open_medium(data, KINDS[kind], self.limits) as medium:
            if kind == "image":
                load_image(data, self.limits)
            ending = EXTENSIONS[medium.kind]
        folder = f"{self.job.name}_media/{PurePosixPath(row.file).with_suffix('')}/{row.number // 1000:05d}"
        name = f"{folder}/{row.number:08d}_{len(self.names)}{ending}"
        self.names[data] = name
        self.unwritten[name] = data
        return name

    def _as_mp4(self, name: str) -> str:
        """An mp4 file of the output that shows what a GIF of the media root shows."""
        if not self.root.exists(name):
            raise Skip("medium missing", f"{name} is not below {self.root.url}")
        target = f"{self.job.name}_media/{PurePosixPath(name).with_suffix('.mp4')}"
        if not self.output.exists(target):
            with _refusals():
                check_medium(self.root, name, ("GIF",), self.limits)
                self.limits.check_memory(name, self.root.size(name))
                mp4 = gif_to_mp4(self.root.read(name), name, self.limits)
            self.output.write(target, mp4, shared=True)
        return target


class _refusals:
    """A medium that cannot be used is a reason to skip."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, MediaError):
            raise Skip("medium refused", str(error)) from error


def _decode_video(path: str, limits: MediaLimits) -> None:
    with open_video(path, limits=limits) as video:
        seconds = video.probe().duration
        video.frames_at([0.0, seconds / 2, seconds])


DECODE = {"image": load_image, "video": _decode_video}


@lru_cache(maxsize=2)
def _index(work: str) -> dict[str, list[str]]:
    return json.loads(Place(work).read(INDEX))


def forget() -> None:
    """Contents of files that this process remembers, when another job may have written them."""
    _index.cache_clear()
    _extras.cache_clear()
