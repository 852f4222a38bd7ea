"""Rows of a mixture become training samples, one at a time, when they are asked for."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from quicksviewer.constants import IGNORE_INDEX, IMAGE_MARK, VIDEO_MARK
from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.data.features import FeatureStore
from quicksviewer.data.lengths import SizeTable
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.packing import Caps, Packs, plan_packs
from quicksviewer.data.preprocess import MediumRef, Sample, SampleError, modality, parse_sample
from quicksviewer.utils.batching import join_media
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
        table: SizeTable | None = None,
    ):
        """`table`: sizes of the rows, if they were measured; videos are held to the frames that it says."""
        if not len(mixture):
            raise ValueError("the mixture has no rows")
        self.table = table
        self.mixture, self.processor, self.max_length = mixture, processor, max_length
        self.policy = policy or BadSamplePolicy()
        self.quarantine = Path(quarantine) if quarantine else None
        self._seen, self._bad = 0, {}
        self.features: FeatureStore | None = None
        """Where the tower's tokens of media are kept, for a tower that is frozen."""

    def __len__(self) -> int:
        return len(self.mixture)

    @property
    def fingerprint(self) -> str:
        """Of what stands at which index."""
        return self.mixture.fingerprint

    def __getitem__(self, index: int) -> dict:
        """The row at an index, or its replacement."""
        at = index
        for attempt in range(1, self.policy.tries + 1):
            self._seen += 1
            try:
                return self.load_at(at)
            except (SampleError, MediaError) as error:
                if not self.policy.replace:
                    raise
                self._record(at, error)
                at = self.policy.next_index(index, attempt, len(self))
        raise SampleError(f"row {index}", f"{self.policy.tries} replacements in a row cannot be used either")

    def load_at(self, index: int) -> dict:
        """What stands at an index. Raises as `load` does."""
        return self.load(index, self._held_to(index))

    def _held_to(self, index: int) -> int | None:
        return None if self.table is None else int(self.table.max_frames[index]) or None

    @property
    def sizes(self) -> np.ndarray | None:
        """(N, 3) tokens, frames, squares of what stands at each index, if they were measured."""
        return None if self.table is None else self.table.sizes

    def load(self, index: int, max_frames: int | None = None) -> dict:
        """The row at an index, its videos held to `max_frames`.

        SampleError (with file and line) or MediaError where it cannot be used.
        """
        record, where = self.mixture[index]
        sample = parse_sample(record, where)
        media = [self._load_medium(ref, where, max_frames) for ref in sample.media]
        try:
            row = self.processor.encode_turns(sample.turns, media)
        except ValueError as error:
            raise SampleError(where, str(error)) from error
        self._check(row, sample, where)
        source = sample.source or Path(where.rpartition(":")[0]).stem
        return row | {"groups": [(f"source/{source}", f"modality/{modality(sample)}")]}

    def _load_medium(self, ref: MediumRef, where: str, max_frames: int | None):
        at = (ref.start, ref.end, ref.timestamps, max_frames)
        try:
            if self.features is not None:
                return self._load_or_recall(ref, at)
            return self.processor.load(MARK_OF[ref.kind], ref.path, *at)
        except (MediaError, ValueError) as error:
            raise SampleError(where, str(error)) from error

    def _load_or_recall(self, ref: MediumRef, at: tuple):
        """A medium with its key: what the tower saw of it if that is stored, else its pixels."""
        mark = MARK_OF[ref.kind]
        if not Path(ref.path).is_file():
            return self.processor.load(mark, ref.path, *at)  # which says what is wrong with it
        key = self.features.key(ref.path, kind=ref.kind, at=at)
        if (seen := self.features.find(key)) is not None:
            return self.processor.as_seen(mark, key, seen.tokens, seen.times)
        return replace(self.processor.load(mark, ref.path, *at), key=key)

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
            self._note(index, str(error))
        if self._seen > 50 and len(self._bad) > self.policy.max_share * self._seen:
            raise SampleError(
                str(self.quarantine or "data"),
                f"{len(self._bad)} of {self._seen} rows cannot be used, the last: {error}",
            ) from error

    def _note(self, index: int, reason: str) -> None:
        """One line of the quarantine."""
        if self.quarantine is not None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"index": index, "error": reason}, ensure_ascii=False) + "\n"
            with self.quarantine.open("a", encoding="utf-8") as file:
                file.write(line)


class PackedDataset(LazySupervisedDataset):
    """Packs of samples (see packing.py): a row is several samples one behind the other, with `segment_ids`
    and `position_ids` that tell them apart, and the media of all of them in order.

    `table`: sizes of the mixture's rows. Rows that it calls unusable are in no pack and stand in
    `quarantine` from the start. A sample that fails or has another length when it is loaded is recorded there
    and missing in its pack; a pack of which nothing is left is replaced by another one.
    """

    def __init__(
        self, mixture: Mixture, processor, caps: Caps, table: SizeTable, policy=None, quarantine=None
    ):
        super().__init__(mixture, processor, caps.tokens, policy, quarantine, table)
        usable = np.flatnonzero(table.tokens)
        if not len(usable):
            raise ValueError(f"no row of the mixture can be used, the first because: {table.unusable[0]}")
        if len(table.unusable) > self.policy.max_share * len(mixture) * self.policy.replace:
            reason = next(iter(table.unusable.values()))
            raise SampleError(
                "data", f"{len(table.unusable)} of {len(mixture)} rows cannot be used; {reason}"
            )
        for index, reason in table.unusable.items():
            self._note(index, reason)
        packs = plan_packs(table.sizes[usable], caps)
        self.packs = Packs(usable[packs.samples], packs.starts)

    @property
    def sizes(self) -> np.ndarray:
        return self.packs.totals(self.table.sizes)

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def fingerprint(self) -> str:
        """Of the rows and of what shares a pack."""
        plan = hashlib.sha256(self.packs.samples.tobytes() + self.packs.starts.tobytes()).hexdigest()
        return f"{self.mixture.fingerprint}/{plan}"

    def load_at(self, pack: int) -> dict:
        """A pack as one row; SampleError where none of its samples can be used."""
        rows = []
        for index in self.packs[pack].tolist():
            try:
                rows.append(self._load_as_planned(index))
            except (SampleError, MediaError) as error:
                if not self.policy.replace:
                    raise
                self._record(index, error)
        if not rows:
            raise SampleError(f"pack {pack}", "none of its samples can be used")
        return join_rows(rows)

    def _load_as_planned(self, index: int) -> dict:
        row = self.load(index, self._held_to(index))
        if (length := len(row["input_ids"])) != (planned := self.table.tokens[index]):
            raise SampleError(
                self.mixture[index][1],
                f"{length} tokens, planned were {planned}: a medium has changed since it was measured; "
                "remove the table of sizes (--lengths_cache)",
            )
        return row


def join_rows(rows: list[dict]) -> dict:
    """Samples one behind the other as one row. The first token of each is never learned: nothing stands
    before it."""
    lengths = [len(row["input_ids"]) for row in rows]
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "labels": [label for row in rows for label in (IGNORE_INDEX, *row["labels"][1:])],
        "segment_ids": [number for number, n in enumerate(lengths, start=1) for _ in range(n)],
        "position_ids": [place for n in lengths for place in range(n)],
        "groups": [group for row in rows for group in row["groups"]],
        **join_media(rows),
    }


def make_supervised_data_module(
    processor,
    data: str,
    max_length: int,
    registry: str | None = None,
    policy: BadSamplePolicy | None = None,
    quarantine: str | os.PathLike | None = None,
    loss_weighting: str = "token",
    pack: Caps | None = None,
    measure: Callable[[Mixture, Caps], SizeTable] | None = None,
) -> dict[str, Dataset | Callable]:
    """train_dataset and data_collator for the Trainer, from a mixture (a YAML file, or the list
    mini-language).

    `measure` gives the sizes of the rows, for those who order rows by them. `pack`: several samples share a
    row under these caps; needs `measure`.
    """
    mixture = Mixture(parse_mixture(data, registry))
    table = None if measure is None else measure(mixture, pack or Caps(tokens=max_length))
    if pack is not None:
        dataset = PackedDataset(mixture, processor, pack, table, policy, quarantine)
    else:
        dataset = LazySupervisedDataset(mixture, processor, max_length, policy, quarantine, table)
    collator = DataCollatorForSupervisedDataset(processor.pad_id, loss_weighting)
    return {"train_dataset": dataset, "data_collator": collator}
