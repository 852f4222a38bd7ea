"""The order in which samples are read, and how those of a step are dealt to ranks.

Every order is a pure function of what is read, a seed and an epoch: neither the number of processes nor that
of data workers changes it, and each index stands in it exactly once.

    grouped_order   rows of one step are of one modality and of about one length, steps in random order
    deal            the rows of each step over ranks and micro-batches, so that ranks finish together

Letters: N samples, S steps, R ranks, M micro-batches of a step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from quicksviewer.data.stream import Share, epoch_rng

SWAPS = 2
"""Exchanges between the most and the least loaded rank of a step that follow dealing, for each rank."""
MODALITIES = ("text", "image", "video")


def grouped_order(
    lengths_N: Sequence[int],
    groups_N: Sequence[int],
    step_rows: int,
    rng: np.random.Generator,
    mega_batch: int = 64,
) -> np.ndarray:
    """A permutation in which every `step_rows` successive rows are of one group and of similar length.

    Each group is shuffled and cut into mega-batches of `mega_batch` steps; within one, rows are sorted by
    length, and its steps are successive rows of that. Then all steps are shuffled. The rows of each group
    that fill no step stand at the end, in one more mega-batch sorted likewise.
    """
    lengths, groups = np.asarray(lengths_N), np.asarray(groups_N)
    if len(lengths) != len(groups):
        raise ValueError(f"{len(lengths)} lengths, but {len(groups)} groups")
    if step_rows < 1 or mega_batch < 1:
        raise ValueError(f"step_rows={step_rows} and mega_batch={mega_batch} must be at least 1")
    full, rest = [], []
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        cut = len(members) - len(members) % step_rows
        full.append(_sorted_within(members[:cut], lengths, step_rows * mega_batch).reshape(-1, step_rows))
        rest.append(members[cut:])
    steps = np.concatenate(full) if full else np.zeros((0, step_rows), dtype=np.int64)
    tail = np.concatenate(rest) if rest else np.zeros(0, dtype=np.int64)
    tail = tail[np.lexsort((-lengths[tail], groups[tail]))]
    return np.concatenate([steps[rng.permutation(len(steps))].ravel(), tail])


def _sorted_within(members: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Each run of `size` members, longest first."""
    return members[np.lexsort((-lengths[members], np.arange(len(members)) // size))]


# Dealing


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Work of a row, in units of one token's: token * tokens + frame * frames + square * tokens squared
    + decode * megapixels that are decoded for it."""

    token: float = 1.0
    frame: float = 0.0
    square: float = 0.0
    decode: float = 0.0

    def __post_init__(self):
        given = self.token, self.frame, self.square, self.decode
        if min(given) < 0 or sum(given) <= 0:
            raise ValueError(f"coefficients of a cost must not be negative, nor all 0: {self}")

    @classmethod
    def of_model(
        cls, lm_parameters: float, layers: int, width: int, frame_flops: float, decode_flops: float = 0.0
    ) -> "CostModel":
        """From the shape of a language model, the FLOPs of a frame (forward, or thrice if it is trained), and
        those that a GPU would do while a megapixel is decoded for it.

        A token costs 6 FLOPs a parameter; causal attention 6 * layers * width for each squared token, half of
        the full square being masked.
        """
        token = 6.0 * lm_parameters
        square = 6.0 * layers * width / token
        return cls(token=1.0, frame=frame_flops / token, square=square, decode=decode_flops / token)

    def __call__(self, sizes_NK: np.ndarray, megapixels_N: np.ndarray | None = None) -> np.ndarray:
        """(N,) float64 for sizes (N, 3): tokens, frames, tokens squared. Without megapixels decoding costs
        nothing."""
        costs = np.asarray(sizes_NK, dtype=np.float64) @ np.array([self.token, self.frame, self.square])
        return costs if megapixels_N is None else costs + self.decode * megapixels_N


def deal(order_N: np.ndarray, costs_N: np.ndarray, ranks: int, micro_batches: int) -> np.ndarray:
    """The order with the rows of every step dealt anew: row i of a step goes to rank i % ranks, in
    micro-batch i // ranks.

    A step is the next ranks * micro_batches rows of the order; which rows it has does not change, so its
    composition stays as random as the order and does not depend on how many ranks share it. The costliest row
    goes first, each to the rank with the least work that still has a place; then the ranks with the most and
    the least exchange rows. A rank works on its rows from the costliest to the cheapest, so that ranks which
    wait for each other in every micro-batch (ZeRO-3) lose little too. Rows behind the last full step are
    dealt in micro-batches as far as they go.
    """
    if ranks < 1 or micro_batches < 1:
        raise ValueError(f"ranks={ranks} and micro_batches={micro_batches} must be at least 1")
    order, costs = np.asarray(order_N), np.asarray(costs_N, dtype=np.float64)
    cut = len(order) - len(order) % (ranks * micro_batches)
    steps, rest = order[:cut].reshape(-1, ranks * micro_batches), order[cut:]
    rest = rest[np.argsort(-costs[rest], kind="stable")]
    full = len(rest) - len(rest) % ranks
    parts = [_deal_steps(steps, costs, ranks), _deal_steps(rest[None, :full], costs, ranks), rest[full:]]
    return np.concatenate(parts)


def _deal_steps(steps_SX: np.ndarray, costs_N: np.ndarray, ranks: int) -> np.ndarray:
    """Full steps (S, X = ranks * micro-batches) as one order, each dealt; all steps at once."""
    count, rows = steps_SX.shape
    if not steps_SX.size:
        return steps_SX.ravel()
    costs_SX = costs_N[steps_SX]
    falling_SX = np.argsort(-costs_SX, axis=1, kind="stable")
    steps_SX = np.take_along_axis(steps_SX, falling_SX, 1)
    costs_SX = np.take_along_axis(costs_SX, falling_SX, 1)
    loads_SR, taken_SR = np.zeros((count, ranks)), np.zeros((count, ranks), dtype=np.int64)
    dealt, every = np.empty_like(steps_SX), np.arange(count)
    for row in range(rows):
        rank_S = np.where(taken_SR * ranks < rows, loads_SR, np.inf).argmin(axis=1)
        dealt[every, taken_SR[every, rank_S] * ranks + rank_S] = steps_SX[:, row]
        loads_SR[every, rank_S] += costs_SX[:, row]
        taken_SR[every, rank_S] += 1
    dealt = dealt.reshape(count, rows // ranks, ranks)
    for _ in range(SWAPS * ranks):
        if not _swap(dealt, costs_N, loads_SR):
            break
    return np.take_along_axis(dealt, np.argsort(-costs_N[dealt], axis=1, kind="stable"), 1).ravel()


def _swap(dealt_SMR: np.ndarray, costs_N: np.ndarray, loads_SR: np.ndarray) -> bool:
    """In every step the rank with the most work exchanges the row with the one with the least that brings
    them nearest to each other; in place. Whether that helped anywhere."""
    every = np.arange(len(dealt_SMR))
    most_S, least_S = loads_SR.argmax(axis=1), loads_SR.argmin(axis=1)
    gap_S = loads_SR[every, most_S] - loads_SR[every, least_S]
    high_SM, low_SM = dealt_SMR[every, :, most_S], dealt_SMR[every, :, least_S]
    change_SMM = costs_N[high_SM][:, :, None] - costs_N[low_SM][:, None, :]
    miss_SX = np.abs(change_SMM - gap_S[:, None, None] / 2).reshape(len(every), -1)
    best_S = miss_SX.argmin(axis=1)
    row, other = np.divmod(best_S, dealt_SMR.shape[1])
    change_S = change_SMM[every, row, other]
    helps = np.flatnonzero((change_S > 1e-9 * gap_S) & (change_S < gap_S * (1 - 1e-9)))
    every, row, other, most_S, least_S = (a[helps] for a in (every, row, other, most_S, least_S))
    dealt_SMR[every, row, most_S], dealt_SMR[every, other, least_S] = (
        dealt_SMR[every, other, least_S],
        dealt_SMR[every, row, most_S],
    )
    loads_SR[every, most_S] -= change_S[helps]
    loads_SR[every, least_S] += change_S[helps]
    return len(helps) > 0


@dataclass(frozen=True)
class DealByCost:
    """The `deal` of a `StepSampler`: the micro-batches of a step go to processes by what they cost.

    costs (N,): of every row of the data set. The rows of a micro-batch stay together as the order has them.
    """

    costs: np.ndarray

    def __call__(self, rows: np.ndarray, share: Share) -> list[list[int]]:
        batches_XP = rows.reshape(-1, share.per_device)
        costs_X = np.asarray(self.costs)[batches_XP].sum(axis=1)
        dealt = deal(np.arange(len(batches_XP)), costs_X, share.world, share.accumulation)
        return batches_XP[dealt[share.rank :: share.world]].tolist()


class LengthGroupedSampler(Sampler[int]):
    """Indices in `grouped_order`: steps of one modality and of about one length each.

    `step_rows`: rows of an optimizer step over all ranks and accumulated micro-batches. As long as it stays,
    the order is the same on any number of ranks. `order` is an `Order` of data/stream.py.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        modalities: Sequence[int],
        step_rows: int,
        fingerprint: str = "",
        seed: int = 0,
        mega_batch: int = 64,
    ):
        self.lengths, self.modalities = np.asarray(lengths), np.asarray(modalities)
        self.step_rows, self.mega_batch = step_rows, mega_batch
        self.fingerprint, self.seed, self.epoch = fingerprint, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """All indices in the order of an epoch: (N,) int64."""
        rng = epoch_rng(self.fingerprint, self.seed, epoch)
        return grouped_order(self.lengths, self.modalities, self.step_rows, rng, self.mega_batch)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def __len__(self) -> int:
        return len(self.lengths)
