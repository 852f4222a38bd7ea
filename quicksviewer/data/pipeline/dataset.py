"""One split of a pipeline: examples by number, encoded when they are asked for, and the order of an epoch."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from torch.utils.data import Dataset, Sampler

from quicksviewer.data.dataset import BadSamplePolicy
from quicksviewer.data.ledger import BadRow, Ledger, digest
from quicksviewer.data.pipeline.config import BadRowsConfig, PipelineConfig
from quicksviewer.data.pipeline.encode import Encoder
from quicksviewer.data.pipeline.sources import Joined
from quicksviewer.data.pipeline.tasks import TASKS, Example
from quicksviewer.data.preprocess import SampleError
from quicksviewer.data.stream import epoch_rng


class PipelineDataset(Dataset):
    """`rows`: numbers of the source's rows, int64 (N,). `bad`: what happens to one that cannot be used.

    An item is what the pipeline's encoder makes of an example; `example` is what the row says.
    """

    def __init__(
        self, source: Joined, rows: np.ndarray, config: PipelineConfig, encoder: Encoder, bad: BadRowsConfig
    ):
        self.source, self.rows, self.encoder, self.bad = source, rows, encoder, bad
        self.task, self.section = config.task_type, getattr(config, config.task_type)
        self.place = np.zeros(len(rows), dtype=np.int64)
        """Which example of its row each one is."""
        if getattr(self.section, "multiple_captions", False):
            self._unfold()
        self.policy = BadSamplePolicy(replace=bad.policy == "quarantine", max_share=bad.max_share)
        self.ledger = Ledger(bad.file)
        self._seen = self._bad = 0
        """Rows that this process has drawn, and those of them that could not be used."""

    def _unfold(self) -> None:
        """An index for every caption. A row that cannot be read stays one, and fails when it is asked for."""
        counts = []
        for row in self.rows:
            try:
                counts.append(len(self._read(int(row))))
            except SampleError:
                counts.append(1)
        self.place = np.concatenate([np.arange(count) for count in counts] or [self.place]).astype(np.int64)
        self.rows = np.repeat(self.rows, counts)

    def _read(self, row: int) -> list[Example]:
        record, where = self.source[row]
        return TASKS[self.task](record, where, self.section)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what stands at which index."""
        told = f"{self.source.fingerprint} {self.task} {self.section}".encode()
        return hashlib.sha256(told + self.rows.tobytes() + self.place.tobytes()).hexdigest()

    def record(self, index: int) -> dict:
        """The row of an index as its file has it. SampleError where it is no row."""
        return self.source[int(self.rows[index])][0]

    def example(self, index: int) -> Example:
        """Picture and texts at an index. SampleError, with file and line, where the row is no example."""
        return self._read(int(self.rows[index]))[int(self.place[index])]

    def load(self, index: int) -> dict:
        """The example at an index, encoded. SampleError where it cannot be used."""
        return self.encoder(self.example(index), self.source.folder(int(self.rows[index])))

    def __getitem__(self, index: int) -> dict:
        """As `load`; under the policy `quarantine` a bad row is written down, and replaced by one that
        depends on its index alone."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        at = index
        for attempt in range(1, self.policy.tries + 1):
            self._seen += 1
            try:
                return self.load(at)
            except SampleError as error:
                if not self.policy.replace:
                    raise
                self._note(at, error)
                at = self.policy.next_index(index, attempt, len(self))
        where = self.source.where(int(self.rows[index]))
        raise SampleError(where, f"{self.policy.tries} rows that were tried in its place are bad as well")

    def _note(self, index: int, error: SampleError) -> None:
        """One line of the quarantine for each bad row, whichever processes draw it and how often. SampleError
        when there are too many."""
        self._bad += 1
        row = None
        with suppress(SampleError):  # no row at all, which is what the error says
            row = digest(self.record(index))
        self.ledger.add(BadRow(where=error.where, reason=error.reason, row=row, by="pipeline"))
        if self._seen > self.policy.first and self._bad > self.policy.max_share * self._seen:
            told = f"{self._bad} of {self._seen} rows cannot be used, the last: {error}"
            raise SampleError(str(self.bad.file), told) from error


class EpochSampler(Sampler[int]):
    """The indices of one epoch after another, each in an order of its own: a function of data, seed, epoch.

    `reach`: how far a row may move from its place; None: anywhere. `epoch` may be set, to go on with a later
    one.
    """

    def __init__(self, length: int, fingerprint: str, seed: int, reach: int | None = None):
        self.length, self.fingerprint, self.seed, self.reach = length, fingerprint, seed, reach
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def order(self, epoch: int) -> np.ndarray:
        rng = epoch_rng(self.fingerprint, self.seed, epoch)
        if self.reach is None:
            return rng.permutation(self.length)
        return np.argsort(np.arange(self.length) + rng.random(self.length) * self.reach, kind="stable")

    def __iter__(self) -> Iterator[int]:
        order, self.epoch = self.order(self.epoch), self.epoch + 1
        return iter(order.tolist())
