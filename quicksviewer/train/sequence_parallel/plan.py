"""Which part of a sequence lies where, and which parts of it look at each other. Pure: no tensors move.

Letters: B rows, T tokens of a padded row, R ranks of the ring, U ranks of a Ulysses group.

The row is cut into spans. `ring_varlen`: R spans, the i-th for ring rank i. `zigzag_ring_varlen`: 2R spans,
the i-th and the i-th from the end for ring rank i: under a causal mask all ranks then have the same work, in
every step of the ring. The spans of a ring rank, one after the other, are cut evenly among its Ulysses group.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quicksviewer.train.sequence_parallel.topology import Topology
from quicksviewer.utils.registry import lookup

Span = tuple[int, int]
"""Tokens start..stop-1 of the row."""


def straight(ring: int, length: int) -> list[list[Span]]:
    """One span for each ring rank."""
    size = length // ring
    return [[(i * size, (i + 1) * size)] for i in range(ring)]


def zigzag(ring: int, length: int) -> list[list[Span]]:
    """Two spans for each ring rank: as far from the start as from the end."""
    size = length // (2 * ring)
    return [[(i * size, (i + 1) * size) for i in (rank, 2 * ring - 1 - rank)] for rank in range(ring)]


ORDERS = {"ring_varlen": (straight, 1), "zigzag_ring_varlen": (zigzag, 2)}
"""--seq_parallel_ring_type -> how a row is cut, and spans of a ring rank."""


@dataclass(frozen=True)
class Block:
    """Queries of a document that look at keys of it: tokens of two ring ranks, counted on each of them.

    `row` of the batch; `queries`, `keys`: slices or index arrays; `causal`: they are the same tokens, and a
    query sees none after itself; otherwise all keys come before all queries.
    """

    row: int
    queries: slice | np.ndarray
    keys: slice | np.ndarray
    causal: bool

    @property
    def pairs(self) -> int:
        """Scores that have to be computed."""
        queries, keys = _count(self.queries), _count(self.keys)
        return queries * (queries + 1) // 2 if self.causal else queries * keys


@dataclass(frozen=True)
class SequencePlan:
    """A batch of rows on the ranks of a team. `segment_ids`: (B, T) on the host, 0 for padding; T as
    `padded_length` wants it."""

    topology: Topology
    order: str
    segment_ids: np.ndarray

    def __post_init__(self):
        length = self.segment_ids.shape[1]
        if length % self.multiple(self.topology, self.order):
            raise ValueError(
                f"rows of {length} tokens are no multiple of {self.multiple(self.topology, self.order)}"
            )

    @staticmethod
    def multiple(topology: Topology, order: str) -> int:
        """Rows have a multiple of so many tokens, so that all ranks hold as many."""
        spans = lookup(ORDERS, order, "ring type")[1]
        return topology.ring * math.lcm(spans, topology.ulysses)

    @classmethod
    def padded_length(cls, topology: Topology, order: str, length: int) -> int:
        """The least length from `length` on that can be cut."""
        multiple = cls.multiple(topology, order)
        return -(-length // multiple) * multiple

    @cached_property
    def spans(self) -> list[list[Span]]:
        """The spans of every ring rank, in the order in which it holds them."""
        return ORDERS[self.order][0](self.topology.ring, self.segment_ids.shape[1])

    def places(self, sequence_rank: int) -> np.ndarray:
        """Places in the row of the tokens of a rank, in its order: (T / team,)."""
        ring, ulysses = divmod(sequence_rank, self.topology.ulysses)
        held = np.concatenate([np.arange(start, stop) for start, stop in self.spans[ring]])
        return np.split(held, self.topology.ulysses)[ulysses]

    def owners(self) -> np.ndarray:
        """The sequence rank of every place of a row: (T,)."""
        owner = np.empty(self.segment_ids.shape[1], dtype=np.int64)
        for rank in range(self.topology.sequence):
            owner[self.places(rank)] = rank
        return owner

    def blocks(self, queries_of: int, keys_of: int) -> list[Block]:
        """Everything that queries of one ring rank have to do with keys of another."""
        if (queries_of, keys_of) not in self._blocks:
            self._blocks[queries_of, keys_of] = list(self._find_blocks(queries_of, keys_of))
        return self._blocks[queries_of, keys_of]

    @cached_property
    def _blocks(self) -> dict[tuple[int, int], list[Block]]:
        return {}

    def _find_blocks(self, queries_of: int, keys_of: int) -> Iterator[Block]:
        for row in range(len(self.segment_ids)):
            for query_span, queries in self._documents[queries_of, row]:
                for key_span, keys in self._documents[keys_of, row]:
                    if key_span[0] > query_span[0]:
                        continue
                    for document in queries.keys() & keys.keys():
                        yield Block(row, queries[document], keys[document], key_span == query_span)

    @cached_property
    def _documents(self) -> dict[tuple[int, int], list[tuple[Span, dict]]]:
        """(ring rank, row) -> its spans, each with the place of its documents in what the rank holds."""
        found = {}
        for rank, spans in enumerate(self.spans):
            starts = np.cumsum([0, *(stop - start for start, stop in spans)])
            for row, segments in enumerate(self.segment_ids):
                found[rank, row] = [
                    (span, _documents_in(segments[slice(*span)], int(start)))
                    for span, start in zip(spans, starts, strict=False)
                ]
        return found


def _documents_in(segments: np.ndarray, offset: int) -> dict[int, slice | np.ndarray]:
    """Document -> where its tokens are, counted from `offset`. A slice where they follow each other."""
    found = {}
    for document in np.unique(segments):
        if document == 0:
            continue
        places = np.flatnonzero(segments == document) + offset
        first, last = int(places[0]), int(places[-1])
        found[int(document)] = slice(first, last + 1) if last - first + 1 == len(places) else places
    return found


def _count(places: slice | np.ndarray) -> int:
    return places.stop - places.start if isinstance(places, slice) else len(places)


def work(plan: SequencePlan) -> list[int]:
    """Scores that each ring rank computes for one head."""
    ring = range(plan.topology.ring)
    return [sum(block.pairs for keys in ring for block in plan.blocks(rank, keys)) for rank in ring]
