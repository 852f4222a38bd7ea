"""Several processes that share one batch, as the model sees them; and the one that shares with nobody.

Frames are dealt evenly; pooled frames are gathered, so that every process makes the same cuts; then a few
frames move so that each cube lies whole on the process that holds its first frame. Text is cut into shards,
and visual tokens travel to the shard in which their slots are. Nothing here talks: who does implements `Team`
(train/sequence_parallel/team.py). Letters: B rows, T tokens, N frames, C cubes, M visual tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch import Tensor


def even_counts(total: int, parts: int) -> list[int]:
    """`total` things dealt in order to `parts`: counts that differ by 1 at most, larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def own_slice(counts: Sequence[int], rank: int) -> slice:
    """Where the things of a rank lie among those of all."""
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


@dataclass(frozen=True)
class TextShard:
    """What a process runs the language model on, out of rows that all processes of its team hold.

    ids, position_ids: (B, T of the shard); targets, weights: of the same shape or None, labels of the next
    tokens and what they weigh; places: (T of the shard,) those of its tokens in the rows; num_targets: of the
    whole batch, or their weight; order, send, receive: which of the process's visual tokens go where, and how
    many come back for this shard's slots; attention: keyword arguments that the attention asks for.
    """

    ids: Tensor
    position_ids: Tensor
    places: Tensor
    targets: Tensor | None
    weights: Tensor | None
    num_targets: Tensor | None
    order: Tensor
    send: list[int]
    receive: list[int]
    attention: dict[str, Any] = field(default_factory=dict)


class Team:
    """One process. Its methods are identities; those of several processes have exact gradients.

    The convention of losses and gradients: their mean over the processes is that of the whole.
    """

    size: int = 1
    rank: int = 0

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes, `counts` of them, in order, on each."""
        return rows

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Rows to and from every process, in the order of processes."""
        return rows

    def total(self, x: Tensor) -> Tensor:
        """The sum over the processes, on each."""
        return x

    def cut(self, text: dict[str, Tensor | None], is_slot_BT: Tensor, visual: Sequence[int]) -> TextShard:
        """This process's shard of a batch.

        `text`: input_ids, segment_ids, position_ids (B, T), and targets and weights of that shape or None;
        `is_slot_BT`: where visual tokens go, of which process i has `visual[i]`, in order.
        """
        raise NotImplementedError("one process has no shards: it runs the language model on the whole batch")


@dataclass(frozen=True)
class Part:
    """The cubes of a process and the frames they consist of, among those of all; and how many of the frames
    that it has seen go where, and how many come back."""

    frames: slice
    cubes: slice
    send: list[int]
    receive: list[int]

    @property
    def num_cubes(self) -> int:
        return self.cubes.stop - self.cubes.start


def deal_cubes(first_frame: Sequence[int], num_frames: int, held: Sequence[int]) -> list[Part]:
    """A part for each process, when process i has seen `held[i]` frames, in order.

    A cube goes to the process that has seen its first frame, so only frames of cubes that straddle a border
    move. `first_frame`: of every cube, ascending from 0.
    """
    borders = [0, *accumulate(held)]
    cubes = [bisect_left(first_frame, border) for border in borders]
    starts = [*first_frame, num_frames]
    needed = [starts[cube] for cube in cubes]
    have, want = _pairs(borders), _pairs(needed)
    moved = [[_overlap(ours, theirs) for theirs in want] for ours in have]
    return [
        Part(slice(*want[rank]), slice(*_pairs(cubes)[rank]), moved[rank], [row[rank] for row in moved])
        for rank in range(len(held))
    ]


def _pairs(borders: list[int]) -> list[tuple[int, int]]:
    return list(zip(borders[:-1], borders[1:], strict=True))


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> int:
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0)


def deal_units(parts: Sequence[Part], cubes: Sequence[int], has_thumbnail: Sequence[bool]) -> list[list[int]]:
    """The units (cubes and thumbnails) of each process, in the order of their slots, for media of `cubes`.

    Cube c is unit c and the i-th thumbnail is unit C + i, where C counts the cubes of all parts. A thumbnail
    stands before the first cube of its video and belongs to the process that has that cube; so the slots of a
    process follow each other.
    """
    order, cube, thumbnail = [], 0, sum(part.num_cubes for part in parts)
    owners = [rank for rank, part in enumerate(parts) for _ in range(part.num_cubes)]
    for count, has in zip(cubes, has_thumbnail, strict=True):
        if has:
            order.append((owners[cube], thumbnail))
            thumbnail += 1
        order += [(owners[c], c) for c in range(cube, cube + count)]
        cube += count
    return [[unit for owner, unit in order if owner == rank] for rank in range(len(parts))]
