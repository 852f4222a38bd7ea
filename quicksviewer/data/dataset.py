"""Rows of a mixture become training samples, one at a time, when they are asked for."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.preprocess import MediumRef, Sample, SampleError, parse_sample
from quicksviewer.utils.data_util import MediaError

MARK_OF = {"image": IMAGE_MARK, "video": VIDEO_MARK}
GOLDEN = 0x9E3779B97F4A7C15
"""Odd 64-bit constant of the golden ratio: its multiples spread replacements over the whole data set."""


@dataclass(frozen=True, kw_only=True)
class BadSamplePolicy:
    """What happens to a row that cannot be used. The replacement depends on the row's index alone, so that
    every rank and every resumed run agrees on it."""

    replace: bool = True
    """Off: the first bad row ends the run with its error."""
    tries: int = 8
    max_share: float = 0.2
    """More bad rows than this share (after the first 50 rows of a worker) end the run."""

    def next_index(self, index: int, attempt: int, length: int) -> int:
        return (index + attempt * GOLDEN) % length


class LazySupervisedDataset(Dataset):
    """Samples of a mixture, as rows of the processor: input_ids, labels, and media.

    A row that cannot be used is written to `quarantine` (a JSONL file: index, where, reason) and replaced.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor,
        max_length: int,
        policy: BadSamplePolicy | None = None,
        quarantine: str | os.PathLike | None = None,
    ):
        if not len(mixture):
            raise ValueError("the mixture has no rows")
        self.mixture, self.processor, self.max_length = mixture, processor, max_length
        self.policy = policy or BadSamplePolicy()
        self.quarantine = Path(quarantine) if quarantine else None
        self._seen, self._bad = 0, {}

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> dict:
        """The row at an index, or its replacement."""
        at = index
        for attempt in range(1, self.policy.tries + 1):
            self._seen += 1
            try:
                return self.load(at)
            except (SampleError, MediaError) as error:
                if not self.policy.replace:
                    raise
                self._record(at, error)
                at = self.policy.next_index(index, attempt, len(self))
        raise SampleError(f"row {index}", f"{self.policy.tries} replacements in a row cannot be used either")

    def load(self, index: int) -> dict:
        """The row at an index. SampleError (with file and line) or MediaError where it cannot be used."""
        record, where = self.mixture[index]
        sample = parse_sample(record, where)
        media = [self._load_medium(ref, where) for ref in sample.media]
        try:
            row = self.processor.encode_turns(sample.turns, media)
        except ValueError as error:
            raise SampleError(where, str(error)) from error
        self._check(row, sample, where)
        return row

    def _load_medium(self, ref: MediumRef, where: str):
        try:
            return self.processor.load(MARK_OF[ref.kind], ref.path, ref.start, ref.end, ref.timestamps)
        except (MediaError, ValueError) as error:
            raise SampleError(where, str(error)) from error

    def _check(self, row: dict, sample: Sample, where: str) -> None:
        if (length := len(row["input_ids"])) > self.max_length:
            raise SampleError(
                where, f"{length} tokens exceed the limit of {self.max_length} (--model_max_length)"
            )
        if all(label < 0 for label in row["labels"]):
            raise SampleError(where, f"sample {sample.uid} has nothing to learn: no text of the assistant")

    def _record(self, index: int, error: Exception) -> None:
        if index not in self._bad:
            self._bad[index] = str(error)
            if self.quarantine is not None:
                self.quarantine.parent.mkdir(parents=True, exist_ok=True)
                line = json.dumps({"index": index, "error": str(error)}, ensure_ascii=False) + "\n"
                with self.quarantine.open("a", encoding="utf-8") as file:
                    file.write(line)
        if self._seen > 50 and len(self._bad) > self.policy.max_share * self._seen:
            raise SampleError(
                str(self.quarantine or "data"),
                f"{len(self._bad)} of {self._seen} rows cannot be used, the last: {error}",
            ) from error


def make_supervised_data_module(
    processor,
    data: str,
    max_length: int,
    registry: str | None = None,
    policy: BadSamplePolicy | None = None,
    quarantine: str | os.PathLike | None = None,
) -> dict[str, Dataset | Callable]:
    """train_dataset and data_collator for the Trainer, from a mixture (a YAML file, or the list
    mini-language)."""
    mixture = Mixture(parse_mixture(data, registry))
    dataset = LazySupervisedDataset(mixture, processor, max_length, policy, quarantine)
    return {"train_dataset": dataset, "data_collator": DataCollatorForSupervisedDataset(processor.pad_id)}
