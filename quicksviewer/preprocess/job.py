"""A whole conversion: plan shards, run them anywhere, put them together, tell what became of every row.

    OUTPUT/NAME.jsonl            the samples, in the order of the input (or several files NAME_PART.jsonl)
    OUTPUT/NAME.skipped.jsonl    the ledger: what is not in the output, and why
    OUTPUT/NAME.report.json      settings and counts; written last
    OUTPUT/NAME_media/           media that were inside the rows
    OUTPUT/.NAME.shards/         finished shards, until the report is there

A call with the same settings goes on where an earlier one was stopped, and does nothing after the report. The
output does not depend on how many processes made it, nor on which.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from quicksviewer.preprocess import store, task
from quicksviewer.preprocess.converter import Converter
from quicksviewer.preprocess.files import Place, data_files
from quicksviewer.preprocess.index import build_index
from quicksviewer.preprocess.progress import Progress
from quicksviewer.preprocess.reading import Piece, Shard, cut_range, names_of, pieces_of, rows_of, shards_of
from quicksviewer.preprocess.runner import run
from quicksviewer.preprocess.schema import SchemaError, check_row
from quicksviewer.preprocess.tables import find
from quicksviewer.preprocess.task import INDEX, LEDGER, Job, ShardTask, to_line

HEAD_ROWS = 16
"""Rows looked at before anything is started: when none fits the schema, it is another data set."""
SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a conversion reads and how; all that its output depends on."""

    job: Job
    inputs: tuple[str, ...]
    rows_per_shard: int = 1000
    samples_range: tuple[int, int | None] = (0, None)
    tsv_output: str | None = None
    """Folder for a TSV store of the videos of the samples."""
    decoder: str = "av"
    frame_side: int = 448
    """Shorter side of a stored frame, at most; 0 keeps the size of the video."""

    def __post_init__(self):
        start, stop = self.samples_range
        if self.rows_per_shard < 1 or start < 0 or (stop is not None and stop <= start):
            raise ValueError(
                f"rows_per_shard {self.rows_per_shard}, samples_range {start} to {stop}: no rows"
            )
        converter = find(self.job.converter)
        _check_media_root(converter, self.job)
        if missing := [
            f"{word}=({what})" for word, what in converter.extras.items() if word not in self.job.extras
        ]:
            raise ValueError(f"{converter.name} needs --extra {' '.join(missing)}")
        if self.tsv_output and not (Place(self.tsv_output).is_local and Place(self.job.output).is_local):
            raise ValueError("a TSV store is written to folders of this machine: --tsv_output and --output")


def _check_media_root(converter: Converter, job: Job) -> None:
    if converter.media == "files" and not job.media_root:
        raise ValueError(f"{converter.name} has its media in files: give their folder, --media_root")
    if converter.media != "files" and job.media_root:
        raise ValueError(f"{converter.name} has no media in files: --media_root has no use")


@dataclass(frozen=True, kw_only=True)
class Means:
    """How a conversion is done; its output does not depend on it."""

    runner: str = "local"
    num_workers: int = 1

    def __post_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")


@dataclass
class Report:
    """What became of the rows."""

    rows: int = 0
    used: int = 0
    """Rows that gave a sample at least."""
    samples: Counter = field(default_factory=Counter)
    """By output file."""
    skipped: Counter = field(default_factory=Counter)
    """Lines of the ledger, by reason."""
    videos: int = 0
    """In the TSV store."""

    def add(self, summary: dict) -> None:
        self.rows += summary["rows"]
        self.used += summary["used"]
        self.samples.update(summary["samples"])
        self.skipped.update(summary["skipped"])


# Planning


def plan(settings: Settings) -> list[Shard]:
    """The shards of the input. ValueError when it is not of the data set."""
    converter = find(settings.job.converter)
    places = data_files(settings.inputs)
    pieces = []
    for place, name in zip(places, names_of(places), strict=True):
        rows = settings.rows_per_shard
        pieces += pieces_of(place, name, converter.json_form, rows, converter.schema)
    _check_head(pieces, converter)
    return shards_of(cut_range(pieces, *settings.samples_range), settings.rows_per_shard)


def _check_head(pieces: Sequence[Piece], converter: Converter) -> None:
    errors = []
    rows = ((piece, *row) for piece in pieces for row in rows_of(piece, converter.schema))
    for piece, number, row in islice(rows, HEAD_ROWS):
        try:
            check_row(row, converter.schema, f"{piece.url}, row {number}")
            return
        except SchemaError as error:
            errors.append(error)
    if errors:
        raise ValueError(f"this is not {converter.reads}. {errors[0]}")
    raise ValueError(f"no rows in {', '.join(sorted({piece.url for piece in pieces})) or 'the input'}")


def _fingerprint(settings: Settings) -> dict[str, Any]:
    """The settings and the sizes of all that is read, as JSON has them."""
    inputs = [[place.url, place.size()] for place in data_files(settings.inputs)]
    return json.loads(json.dumps({**asdict(settings), "inputs": inputs}))


def _begin(settings: Settings, fingerprint: dict) -> dict | None:
    """The report of a conversion that is complete; else None, and shards of other settings are refused."""
    job, place = settings.job, Place(settings.job.output)
    work, report = job.work, f"{job.name}.report.json"
    if place.exists(report):
        found = json.loads(place.read(report))
        _check_same(found["settings"], fingerprint, place.path(report))
        gone = [
            name
            for name, size in found["files"].items()
            if not place.exists(name) or place.size(name) != size
        ]
        if gone:
            raise ValueError(
                f"{', '.join(gone)} changed since {place.path(report)}: delete that to start anew"
            )
        work.remove()
        return found
    if work.exists(SETTINGS):
        _check_same(json.loads(work.read(SETTINGS))["settings"], fingerprint, work.url)
    else:
        base = store.last_of(Path(settings.tsv_output)) if settings.tsv_output else 0
        if base:
            raise ValueError(
                f"{settings.tsv_output} holds a store: give another folder, or use 2tsv --append"
            )
        work.write(SETTINGS, to_line({"settings": fingerprint}))
    return None


def _check_same(found: dict, wanted: dict, where: str) -> None:
    if different := [key for key in wanted if found.get(key) != wanted[key]]:
        shown = "; ".join(f"{key}: {found.get(key)!r}, now {wanted[key]!r}" for key in different)
        raise ValueError(
            f"{where} is of other settings ({shown}): delete it, or give another --output or --name"
        )


# Running


def convert(settings: Settings, means: Means) -> dict:
    """Do what is left to do and give the report as it is written: settings, counts, files, mixture.

    Raises ValueError for wrong settings or inputs, WorkerDied, KeyboardInterrupt; finished shards are kept.
    """
    if means.num_workers > 1 or means.runner != "local":
        _check_shared(settings)
    task.forget()
    fingerprint = _fingerprint(settings)
    if (done := _begin(settings, fingerprint)) is not None:
        return done
    tasks = [ShardTask(settings.job, shard) for shard in plan(settings)]
    _prepare_index(settings.job)
    summaries = run_all(tasks, means, settings.job.converter)
    frames = _frames_tasks(settings, tasks)
    stored = run_all(frames, means, "frames") if frames else []
    shards, parts = zip(tasks, summaries, strict=True), zip(frames, stored, strict=True)
    return _finish(settings, fingerprint, list(shards), list(parts))


def _check_shared(settings: Settings) -> None:
    job = settings.job
    for url in filter(None, (job.output, job.media_root, job.image_cache, *settings.inputs)):
        if Place(url).is_in_memory:
            raise ValueError(f"{url} is in the memory of this process: use --runner local --num_workers 1")


def _prepare_index(job: Job) -> None:
    converter = find(job.converter)
    if converter.index and not job.work.exists(INDEX):
        job.work.write(INDEX, to_line(build_index(Place(job.media_root), converter.index)))


def run_all(tasks: Sequence[Callable[[], dict]], means: Means, what: str) -> list[dict]:
    """The results of all tasks, in their order."""
    results: list[dict] = [{}] * len(tasks)
    with Progress(what, len(tasks)) as shown:
        for place, result in run(tasks, means.runner, means.num_workers):
            results[place] = result
            shown.step(result)
    return results


def _frames_tasks(settings: Settings, tasks: Sequence[ShardTask]) -> list[store.FramesTask]:
    """The videos of all samples, each once, in the order of the samples."""
    if not settings.tsv_output:
        return []
    job, videos = settings.job, {}
    for one in tasks:
        for part in find(job.converter).parts:
            for sample in _samples(job.work, f"{one.folder}/part{part}.jsonl"):
                videos |= dict.fromkeys(_videos(sample))
    root = job.output if find(job.converter).media == "rows" else job.media_root
    return frames_tasks(
        job.work.url, root, list(videos), settings.decoder, settings.frame_side, job.isolation
    )


def frames_tasks(
    work: str, root: str, videos: Sequence[str], decoder: str, side: int, isolation: str
) -> list[store.FramesTask]:
    """Tasks that write the stores of these videos."""
    return [
        store.FramesTask(work, number, root, chunk, decoder, side, isolation)
        for number, chunk in enumerate(store.video_chunks(videos))
    ]


def _samples(place: Place, name: str) -> Iterator[dict]:
    return (json.loads(line) for line in place.read(name).splitlines())


def _videos(sample: dict) -> list[str]:
    said = sample.get("video", sample.get("video_id", []))
    return [said] if isinstance(said, str) else said


# Finishing


def _finish(settings: Settings, fingerprint: dict, shards: list, frames: list) -> dict:
    """Put the shards together; the report is the last thing written."""
    job, place, report = settings.job, Place(settings.job.output), Report()
    for _, summary in shards:
        report.add(summary)
    failed = {name: why for _, summary in frames for name, why in summary["failed"].items()}
    names = [f"{job.name}{part}.jsonl" for part in find(job.converter).parts]
    lost = []
    for part, name in zip(find(job.converter).parts, names, strict=True):
        with place.writing(name) as file:
            for line in _lines(job, shards, f"part{part}.jsonl"):
                if failed and (why := _unstored(line, failed)):
                    lost.append(why)
                    report.samples[part] -= 1
                else:
                    file.write(line)
    report.skipped["medium refused"] += len(lost)
    with place.writing(f"{job.name}.{LEDGER}") as file:
        file.writelines(_lines(job, shards, LEDGER))
        file.writelines(map(to_line, lost))
    mixture = [{"path": place.shown(name), "media_root": _root(settings)} for name in names]
    if settings.tsv_output:
        report.videos = sum(summary["videos"] for _, summary in frames)
        _finish_store(settings, frames, [place.path(name) for name in names])
        mixture = [{"path": settings.tsv_output}]
    return _write_report(settings, fingerprint, report, [*names, f"{job.name}.{LEDGER}"], mixture)


def _root(settings: Settings) -> str | None:
    converter = find(settings.job.converter)
    inside = converter.media == "rows" or converter.gif
    return settings.job.output if inside else settings.job.media_root


def _lines(job: Job, shards: list, name: str) -> Iterator[bytes]:
    for one, _ in shards:
        yield from job.work.read(f"{one.folder}/{name}").splitlines(keepends=True)


def _unstored(line: bytes, failed: dict[str, str]) -> dict | None:
    """The line of the ledger for a sample whose video is not in the store."""
    sample = json.loads(line)
    for name in _videos(sample):
        if name in failed:
            entry = {"file": None, "row": None, "uid": sample["uid"], "reason": "medium refused"}
            return entry | {"detail": failed[name]}
    return None


def _finish_store(settings: Settings, frames: list, rows: Iterable[str]) -> None:
    """The TSV store, and `chat.jsonl` beside it: the folder is a data set by itself."""
    folder = Path(settings.tsv_output)
    parts = [(Path(settings.job.work.path(one.folder)), summary["bytes"]) for one, summary in frames]
    store.join(parts, folder, base=0)
    with Place(settings.tsv_output).writing("chat.jsonl") as file:
        for path in rows:
            file.write(Path(path).read_bytes())


def _write_report(
    settings: Settings, fingerprint: dict, report: Report, files: list[str], mixture: list
) -> dict:
    place, job = Place(settings.job.output), settings.job
    counts = {
        "rows": report.rows,
        "used": report.used,
        "samples": {f"{job.name}{part}.jsonl": count for part, count in sorted(report.samples.items())},
        "skipped": {reason: count for reason, count in sorted(report.skipped.items()) if count},
        "videos": report.videos,
    }
    sizes = {name: place.size(name) for name in files}
    whole = {"settings": fingerprint, "counts": counts, "files": sizes, "mixture": mixture}
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    place.write(f"{job.name}.report.json", text.encode())
    job.work.remove()
    return whole
