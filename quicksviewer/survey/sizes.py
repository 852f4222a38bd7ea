"""How large the rows of a data set are, measured from heads of files or read from a manifest."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from quicksviewer.data.lengths import Heads, measure
from quicksviewer.data.manifest import Manifest, processor_digest
from quicksviewer.data.manifest_sizes import ManifestSizes
from quicksviewer.data.packing import UNLIMITED, Caps
from quicksviewer.data.preprocess import SampleError, parse_sample
from quicksviewer.data.sampler import MODALITIES
from quicksviewer.survey.check import looked_at, progress
from quicksviewer.survey.subject import Subject
from quicksviewer.utils.data_util import MediaError

FREE = Caps(tokens=UNLIMITED[0])
"""Nothing is held to fewer frames: what the media settings ask for is what counts."""


@dataclass(frozen=True)
class RowStat:
    """One row. `seconds`: of its videos as files, or of the clips that it takes of them."""

    source: str
    modality: str
    tokens: int
    frames: int
    seconds: float


COLUMNS = tuple(field.name for field in fields(RowStat))


@dataclass(frozen=True)
class Sizes:
    """Sizes of the rows that can be used, by COLUMNS, and (where, reason) of those that cannot."""

    columns: dict[str, np.ndarray]
    unusable: list[tuple[str, str]]

    @classmethod
    def of(cls, rows: Sequence[RowStat], unusable: list[tuple[str, str]]) -> "Sizes":
        return cls({name: np.array([getattr(row, name) for row in rows]) for name in COLUMNS}, unusable)

    def __post_init__(self):
        if not len(self):
            first = f", the first because: {self.unusable[0][1]}" if self.unusable else ""
            raise ValueError(f"there is no row to measure{first}")

    def __len__(self) -> int:
        return len(self.columns["tokens"])

    def column(self, name: str) -> np.ndarray:
        """A field of all rows: (N,)."""
        return self.columns[name]


class Measured(Dataset):
    """RowStats in the place of rows; (where, reason) of a row that cannot be used."""

    def __init__(self, subject: Subject, manifest: Manifest | None = None):
        self.subject = subject
        self._known = None if manifest is None else manifest.heads()
        self._heads: dict[int, Heads] = {}

    def __len__(self) -> int:
        return len(self.subject.mixture)

    def __getitem__(self, index: int) -> RowStat | tuple[str, str]:
        try:
            return self._measured(index)
        except SampleError as error:
            return error.where, error.reason

    def _measured(self, index: int) -> RowStat:
        processor, heads = self.subject.processor, self._own_heads()
        record, where = self.subject.mixture[index]
        sample = parse_sample(record, where)
        try:
            size = measure(sample, processor, heads, FREE)
            seconds = sum(_seconds(medium, heads) for medium in sample.media if medium.kind == "video")
        except (MediaError, ValueError) as error:
            raise SampleError(where, str(error)) from error
        source = sample.source or Path(where.rpartition(":")[0]).stem
        return RowStat(source, size.modality, size.tokens, size.frames, seconds)

    def _own_heads(self) -> Heads:
        """Of this process: a data base must not be carried over a fork."""
        if self._known is not None:
            return self._known
        if os.getpid() not in self._heads:
            self._heads[os.getpid()] = Heads(decoder=self.subject.processor.media_config.decoder)
        return self._heads[os.getpid()]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_heads": {}}


def _seconds(medium, heads: Heads) -> float:
    """Length of the part of a video that a row takes."""
    whole = heads.video(medium.path).duration
    return max(min(medium.end or whole, whole) - (medium.start or 0.0), 0.0)


def measured(subject: Subject, workers: int = 0, manifest: Manifest | None = None) -> Sizes:
    """Sizes of all rows, from the heads of their files (nothing is decoded but a first frame), or from a
    manifest; where it was made for this processor, no row is read either."""
    if manifest is not None and manifest.processor == processor_digest(subject.processor):
        return _known(subject, manifest)
    rows = looked_at(Measured(subject, manifest), workers)
    found = list(progress(rows, len(subject.mixture), "rows"))
    rows = [row for row in found if isinstance(row, RowStat)]
    return Sizes.of(rows, [row for row in found if not isinstance(row, RowStat)])


def _known(subject: Subject, manifest: Manifest) -> Sizes:
    """Sizes as the columns of a manifest tell them."""
    table = ManifestSizes(manifest, subject.processor).table(subject.mixture, FREE)
    rows_N, usable = manifest.rows_of(subject.mixture), np.flatnonzero(table["tokens"])
    labels_L = manifest.read("label")["label"].to_numpy(zero_copy_only=False)
    columns = {
        "source": labels_L[manifest.starts[:-1]][rows_N],
        "modality": np.array(MODALITIES)[table["modality"]],
        "tokens": table["tokens"],
        "frames": table["frames"],
        "seconds": manifest.over_rows(manifest.clip_seconds)[rows_N],
    }
    places = ((subject.mixture.where(index), reason) for index, reason in table["unusable"].items())
    unusable = [(where, reason.removeprefix(f"{where}: ")) for where, reason in places]
    return Sizes({name: values[usable] for name, values in columns.items()}, unusable)


def summary(values: np.ndarray) -> dict[str, float]:
    """What one wants to know of a distribution; zeros without any value."""
    if not len(values):
        return dict.fromkeys(("total", "mean", "p50", "p95", "p99", "max"), 0.0)
    marks = np.percentile(values, [50, 95, 99])
    figures = dict(zip(("p50", "p95", "p99"), map(float, marks), strict=True))
    return {"total": float(values.sum()), "mean": float(values.mean()), **figures, "max": float(values.max())}


def groups(sizes: Sizes) -> Iterator[tuple[str, str, np.ndarray]]:
    """(source, modality, indices of its rows), in alphabetical order."""
    sources, modalities = sizes.column("source"), sizes.column("modality")
    for source, modality in sorted(set(zip(sources.tolist(), modalities.tolist(), strict=True))):
        yield source, modality, np.flatnonzero((sources == source) & (modalities == modality))


def as_json(sizes: Sizes, max_length: int) -> dict:
    """All figures, as `data stats` writes them."""
    columns = {name: sizes.column(name) for name in ("tokens", "frames", "seconds")}
    rows = [
        {
            "source": source,
            "modality": modality,
            "rows": len(at),
            **{name: summary(values[at]) for name, values in columns.items()},
        }
        for source, modality, at in groups(sizes)
    ]
    return {
        "format": 1,
        "rows": len(sizes),
        "unusable": [{"where": where, "reason": reason} for where, reason in sizes.unusable],
        "max_length": max_length,
        "over_max_length": int((columns["tokens"] > max_length).sum()),
        **{name: summary(values) for name, values in columns.items()},
        "groups": rows,
    }
