"""Rows of a mixture become training samples, one at a time, when they are asked for."""

import hashlib
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from quicksviewer.constants import IGNORE_INDEX, IMAGE_MARK, VIDEO_MARK
from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.data.features import FeatureStore
from quicksviewer.data.ledger import BadMedium, BadRow, KnownBad, Ledger, digest, state_of
from quicksviewer.data.lengths import SizeTable
from quicksviewer.data.manifest_media import ManifestMedia, Outdated
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.packing import Caps, Packs, plan_packs
from quicksviewer.data.preprocess import MediumRef, Sample, SampleError, modality, parse_sample
from quicksviewer.data.stream import Drawn
from quicksviewer.utils.batching import join_media
from quicksviewer.utils.data_util import MediaError, decoder_version, open_video
from quicksviewer.utils.dist import rank
from quicksviewer.utils.media import DecoderLost

MARK_OF = {"image": IMAGE_MARK, "video": VIDEO_MARK}
GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of this share of the rows spread replacements over the whole data set."""
LUCKLESS = 1e-9
"""How often a row may stay without a replacement by chance alone."""


class TooManyBadRows(SampleError):
    """The share of rows that cannot be used is above the set one: the run ends."""


@dataclass(frozen=True, kw_only=True)
class BadSamplePolicy:
    """What happens to a row that cannot be used. The replacement depends on the row's index alone, so that
    every rank and every resumed run agrees on it."""

    replace: bool = True
    """Off: the first bad row ends the run with its error."""
    max_share: float = 0.2
    """A larger share of bad rows among those that a process has drawn ends the run."""
    first: int = 50
    """Rows that a process draws before it judges."""

    def __post_init__(self):
        if not 0 <= self.max_share <= 1:
            raise ValueError(f"a share of bad rows lies between 0 and 1, got {self.max_share}")

    @property
    def tries(self) -> int:
        """Rows that are tried in the place of one, at most: as many as bad rows of the allowed share need."""
        share = min(max(self.max_share, 0.05), 0.95)
        return math.ceil(math.log(LUCKLESS) / math.log(share))

    def next_index(self, index: int, attempt: int, length: int) -> int:
        """The row that is tried next; `length` attempts visit every row once."""
        stride = max(int(length * GOLDEN), 1)
        while math.gcd(stride, length) > 1:
            stride += 1
        return (index + attempt * stride) % length

    def is_exceeded(self, bad: int, seen: int) -> bool:
        """Whether `bad` of `seen` rows are more than chance makes of the allowed share: 3 standard errors."""
        chance = 3 * math.sqrt(seen * self.max_share * (1 - self.max_share))
        return seen > self.first and bad - self.max_share * seen > chance


class LazySupervisedDataset(Dataset):
    """Samples of a mixture, as rows of the processor: input_ids, labels, and media.

    A row that cannot be used is written to the ledger (ledger.py) and replaced. One that the ledger lists is
    replaced without being decoded.
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
        """`quarantine`: file of the ledger. `table`: sizes of the rows, if they were measured; videos are
        held to the frames that it says."""
        if not len(mixture):
            raise ValueError("the mixture has no rows")
        self.table = table
        self.mixture, self.processor, self.max_length = mixture, processor, max_length
        self.policy = policy or BadSamplePolicy()
        self.ledger = Ledger(quarantine)
        self._seen = self._bad = 0
        """Rows that this process has drawn, and those of them that could not be used."""
        self.judges = judges_of(processor, max_length)
        self.features: FeatureStore | None = None
        """Where the tower's tokens of media are kept, for a tower that is frozen."""
        self.indexed: ManifestMedia | None = None
        """What a manifest says of the media, if there is one."""

    def __len__(self) -> int:
        return len(self.mixture)

    @property
    def fingerprint(self) -> str:
        """Of what stands at which index."""
        return self.mixture.fingerprint

    def heed(self, indexed: ManifestMedia) -> None:
        """Compare media with what a manifest says of them whenever a row is loaded."""
        self.indexed, self.judges = indexed, (*self.judges[:2], indexed.judge)

    def __getitem__(self, index: int) -> dict:
        """The row at an index, or its replacement."""
        at, step = index, index.step if isinstance(index, Drawn) else None
        for attempt in range(1, self.policy.tries + 1):
            if (row := self._take(at, step)) is not None:
                return row
            at = self.policy.next_index(index, attempt, len(self))
        raise SampleError(f"row {index}", f"{self.policy.tries} replacements in a row cannot be used either")

    def _take(self, index: int, step: int | None) -> dict | None:
        """What stands at an index, or None if it cannot be used."""
        return self._draw(index, step, self.load_at)

    def _draw(self, index: int, step: int | None, load: Callable[[int], dict]) -> dict | None:
        """One row, or None and a line in the ledger. TooManyBadRows ends the run."""
        self._seen += 1
        try:
            return load(index)
        except (SampleError, MediaError) as error:
            if not self.policy.replace:
                raise
            self._bad += 1
            if not isinstance(error, KnownBad):
                self.ledger.add(self.describe(index, error, step))
            self._check_share(error)
            return None

    def load_at(self, index: int) -> dict:
        """What stands at an index. Raises as `load` does."""
        return self.load(index, self._held_to(index))

    def _held_to(self, index: int) -> int | None:
        return None if self.table is None else int(self.table.max_frames[index]) or None

    @property
    def sizes(self) -> np.ndarray | None:
        """(N, 3) tokens, frames, squares of what stands at each index, if they were measured."""
        return None if self.table is None else self.table.sizes

    @property
    def megapixels(self) -> np.ndarray | None:
        """(N,) what is decoded for that which stands at each index, if a manifest knows it."""
        return None if self.indexed is None else self.indexed.megapixels_N

    def load(self, index: int, max_frames: int | None = None) -> dict:
        """The row at an index, its videos held to `max_frames`.

        SampleError (with file and line) where it cannot be used.
        """
        record, where = self.mixture[index]
        self.ledger.refresh()
        if (known := self.ledger.known(where, record, self.judges)) is not None:
            raise KnownBad(where, known.reason)
        sample = parse_sample(record, where)
        self._refuse_known_media(sample, where)
        if self.indexed is not None:
            self.indexed.check(index, sample.media, where)
        media = [self._load_medium(ref, where, max_frames) for ref in sample.media]
        try:
            row = self.processor.encode_turns(sample.turns, media)
        except ValueError as error:
            raise SampleError(where, str(error)) from error
        self._check(row, sample, where)
        source = sample.source or Path(where.rpartition(":")[0]).stem
        return row | {"groups": [(f"source/{source}", f"modality/{modality(sample)}")]}

    def _refuse_known_media(self, sample: Sample, where: str) -> None:
        for ref in sample.media:
            if (known := self.ledger.known_medium(ref.path, self.judges)) is not None:
                raise BadMedium(where, known.reason, ref.path, is_whole=True)

    def _load_medium(self, ref: MediumRef, where: str, max_frames: int | None):
        at = (ref.start, ref.end, ref.timestamps, max_frames)
        try:
            if self.features is not None:
                return self._load_or_recall(ref, at)
            return self.processor.load(MARK_OF[ref.kind], ref.path, *at)
        except MediaError as error:
            raise BadMedium(where, str(error), ref.path, self._is_whole(ref, error)) from error
        except ValueError as error:
            raise SampleError(where, str(error)) from error

    def _is_whole(self, ref: MediumRef, error: MediaError) -> bool:
        """Whether a medium that has failed fails for every row: a video that cannot even be opened, and any
        image. A decoder that was ended at its limits has told nothing, and is not asked again."""
        if isinstance(error, DecoderLost):
            return False
        if ref.kind == "image":
            return True
        config = self.processor.media_config
        try:
            with open_video(ref.path, config.decoder, config.limits()):
                return False
        except DecoderLost:
            return False
        except MediaError:
            return True

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

    def describe(self, index: int, error: Exception, step: int | None = None, by: str = "train") -> BadRow:
        """A row that has failed, as a line of the ledger."""
        record, where = None, self.mixture.where(index)
        with suppress(SampleError):  # no JSON, which is what the error says
            record, where = self.mixture[index]
        uid = record.get("uid") if record is not None else None
        at_fault = isinstance(error, BadMedium) and ";base64," not in error.path  # a data URL is in the row
        path, is_whole = (str(error.path), error.is_whole) if at_fault else (None, False)
        worker = get_worker_info()
        return BadRow(
            where=where,
            reason=error.reason if isinstance(error, SampleError) else str(error),
            uid=uid if isinstance(uid, str) else None,
            path=path,
            is_whole=is_whole,
            judge=error.judge if isinstance(error, Outdated) else self.judges[0 if is_whole else 1],
            row=None if record is None else digest(record),
            medium=None if path is None else state_of(path),
            by=by,
            index=int(index),
            step=step,
            rank=rank(),
            worker=None if worker is None else worker.id,
        )

    def _check_share(self, error: Exception) -> None:
        if self.policy.is_exceeded(self._bad, self._seen):
            raise TooManyBadRows(
                str(self.ledger.path or "data"),
                f"{self._bad} of {self._seen} rows cannot be used, more than a share of "
                f"{self.policy.max_share} (--max_bad_share); the last: {error}",
            ) from error


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
            self.ledger.add(self.describe(index, SampleError("", reason)))
        packs = plan_packs(table.sizes[usable], caps)
        self.packs = Packs(usable[packs.samples], packs.starts)

    @property
    def sizes(self) -> np.ndarray:
        return self.packs.totals(self.table.sizes)

    @property
    def megapixels(self) -> np.ndarray | None:
        return None if self.indexed is None else self.packs.totals(self.indexed.megapixels_N)

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def fingerprint(self) -> str:
        """Of the rows and of what shares a pack."""
        plan = hashlib.sha256(self.packs.samples.tobytes() + self.packs.starts.tobytes()).hexdigest()
        return f"{self.mixture.fingerprint}/{plan}"

    def load_at(self, pack: int) -> dict:
        """A pack as one row; SampleError where none of its samples can be used."""
        if (row := self._take(pack, None)) is None:
            raise SampleError(f"pack {pack}", "none of its samples can be used")
        return row

    def _take(self, pack: int, step: int | None) -> dict | None:
        drawn = [self._draw(index, step, self._load_as_planned) for index in self.packs[pack].tolist()]
        rows = [row for row in drawn if row is not None]
        return join_rows(rows) if rows else None

    def _load_as_planned(self, index: int) -> dict:
        row = self.load(index, self._held_to(index))
        if (length := len(row["input_ids"])) != (planned := self.table.tokens[index]):
            where, reason = self.mixture.where(index), f"{length} tokens, planned were {planned}"
            if self.indexed is not None:
                raise self.indexed.outdated(where, reason)
            raise SampleError(
                where,
                f"{reason}: a medium has changed since it was measured; "
                "remove the table of sizes (--lengths_cache)",
            )
        return row


def judges_of(processor, max_length: int) -> tuple[str, str]:
    """What a judgement depends on: of a whole medium the decoder, its version and the limits; of anything
    else these and all settings."""
    media = processor.media_config
    medium = f"{decoder_version(media.decoder)} {digest([media.decoder, asdict(media.limits())])}"
    return medium, digest([medium, processor.to_dict(), len(processor.tokenizer), max_length])


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
