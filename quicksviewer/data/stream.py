"""The order of samples as a pure function of (data, seed, epoch, position), and one process's share of it.

The stream is all epochs one after another without a gap: every row once an epoch, no row twice to fill a
batch, none dropped. A run walks along it: the number of samples consumed says where it stands, whatever its
number of processes, workers or micro-batches is.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Order = Callable[[int], np.ndarray]
"""Epoch -> the rows of the data set in the order of that epoch, int64 (rows,)."""


def epoch_rng(fingerprint: str, seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch. Counter based, so that it is the same on every machine."""
    digest = hashlib.sha256(f"{fingerprint} {seed} {epoch}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


def shuffled(length: int, fingerprint: str, seed: int) -> Order:
    """Every epoch in an order of its own."""
    return lambda epoch: epoch_rng(fingerprint, seed, epoch).permutation(length)


def sequential(length: int, fingerprint: str, seed: int) -> Order:
    """Every epoch in the order of the data."""
    return lambda epoch: np.arange(length)


ORDERS: dict[str, Callable[[int, str, int], Order]] = {"random": shuffled, "sequential": sequential}
"""Value of `--train_sampling_strategy` -> order of (rows, fingerprint, seed)."""


class Drawn(int):
    """A row, and the optimizer step (from 0) for which it is drawn: data workers do not know it otherwise."""

    step: int

    def __new__(cls, row: int, step: int):
        drawn = super().__new__(cls, row)
        drawn.step = step
        return drawn

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.step


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every optimizer step is one process's."""

    per_device: int
    """Rows of a micro-batch."""
    accumulation: int = 1
    """Micro-batches of a step."""
    rank: int = 0
    world: int = 1
    """Processes that read different rows."""

    def __post_init__(self):
        if min(self.per_device, self.accumulation, self.world) < 1 or not 0 <= self.rank < self.world:
            raise ValueError(f"no share of a step: {self}")

    @property
    def step(self) -> int:
        """Rows of an optimizer step over all processes."""
        return self.per_device * self.accumulation * self.world


def deal_in_turn(rows: np.ndarray, share: Share) -> list[list[int]]:
    """The micro-batches of one process: all processes' first ones stand before all second ones."""
    return rows.reshape(share.accumulation, share.world, share.per_device)[:, share.rank].tolist()


class SampleStream:
    """Rows by position: epoch 0, epoch 1, ... without a gap."""

    def __init__(self, order: Order, length: int):
        if length < 1:
            raise ValueError("a stream needs at least one row")
        self.order, self.length = order, length
        self._epoch, self._rows = -1, np.empty(0, dtype=np.int64)

    def take(self, start: int, count: int) -> np.ndarray:
        """Rows at the positions start .. start + count - 1: int64 (count,)."""
        parts = []
        while count > 0:
            epoch, place = divmod(start, self.length)
            parts.append(self._of(epoch)[place : place + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rows = np.asarray(self.order(epoch), dtype=np.int64)
            if rows.shape != (self.length,):
                raise ValueError(f"the order of epoch {epoch} has {rows.shape} rows, expected {self.length}")
            self._epoch, self._rows = epoch, rows
        return self._rows


class StepSampler:
    """Micro-batches of one process, as a DataLoader's `batch_sampler`.

    One pass makes the steps of one epoch, the last of them filled from the next; the pass after that goes on
    where it ended.
    """

    def __init__(self, stream: SampleStream, share: Share, start: int = 0, deal=deal_in_turn):
        self.stream, self.share, self.deal = stream, share, deal
        self.position = start
        """Samples handed out to all processes, counted from the start of the run."""

    def __len__(self) -> int:
        return -(-self.stream.length // self.share.step) * self.share.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self) // self.share.accumulation):
            rows, step = self.stream.take(self.position, self.share.step), self.position // self.share.step
            self.position += self.share.step
            for batch in self.deal(rows, self.share):
                yield [Drawn(row, step) for row in batch]
