"""Where tokens lie and what they look at, against asking every pair of tokens."""

import numpy as np
import pytest

from quicksviewer.train.sequence_parallel.plan import SequencePlan, work
from quicksviewer.train.sequence_parallel.topology import Topology

TOPOLOGIES = [Topology(4, 4, 1), Topology(4, 4, 2), Topology(4, 4, 4), Topology(6, 6, 3), Topology(3, 3, 3)]
ORDERS = ("ring_varlen", "zigzag_ring_varlen")


def make_plan(topology: Topology, order: str, least: int = 20) -> SequencePlan:
    length = SequencePlan.padded_length(topology, order, least)
    documents = np.array([[1] * 7 + [2] * 3 + [5] * (length - 12) + [0] * 2, [1] * 3 + [9] * (length - 3)])
    documents[1, 8] = 0  # a hole, as a dropped zero of a plain timestamp leaves it
    return SequencePlan(topology, order, documents)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_token_lies_on_one_rank_and_all_hold_as_many(topology, order):
    plan = make_plan(topology, order)
    places = [plan.places(rank) for rank in range(topology.sequence)]
    assert sorted(np.concatenate(places)) == list(range(plan.segment_ids.shape[1]))
    assert len({len(p) for p in places}) == 1
    for rank, held in enumerate(places):
        assert (plan.owners()[held] == rank).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_blocks_are_exactly_the_pairs_that_may_see_each_other(topology, order):
    plan = make_plan(topology, order)
    held = [np.concatenate([np.arange(*span) for span in spans]) for spans in plan.spans]
    seen = set()
    for queries in range(topology.ring):
        for keys in range(topology.ring):
            for block in plan.blocks(queries, keys):
                q, k = held[queries][block.queries], held[keys][block.keys]
                pairs = {
                    (block.row, i, j)
                    for a, i in enumerate(q)
                    for b, j in enumerate(k)
                    if not block.causal or b <= a
                }
                assert len(pairs) == block.pairs and not pairs & seen
                seen |= pairs
    tokens = range(plan.segment_ids.shape[1])
    assert seen == {
        (row, i, j)
        for row, documents in enumerate(plan.segment_ids)
        for i in tokens
        for j in tokens
        if j <= i and documents[i] == documents[j] != 0
    }


@pytest.mark.parametrize("ring", [2, 3, 4, 8])
def test_zigzag_deals_the_work_of_one_document_evenly(ring):
    topology = Topology(ring, ring, ring)
    for order, fair in [("ring_varlen", False), ("zigzag_ring_varlen", True)]:
        length = SequencePlan.padded_length(topology, order, 64 * ring)
        found = work(SequencePlan(topology, order, np.ones((1, length), dtype=int)))
        assert sum(found) == length * (length + 1) // 2
        assert (max(found) == min(found)) == fair
        assert fair or np.mean(found) / max(found) < 0.7


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_padded_length_is_the_least_that_can_be_cut(topology, order):
    for length in range(1, 60):
        padded = SequencePlan.padded_length(topology, order, length)
        assert length <= padded < length + SequencePlan.multiple(topology, order)
        SequencePlan(topology, order, np.ones((1, padded), dtype=int)).places(0)


def test_a_length_that_cannot_be_cut_and_an_unknown_order_are_refused():
    with pytest.raises(ValueError, match="9 tokens.*multiple of 4"):
        SequencePlan(Topology(2, 2, 2), "zigzag_ring_varlen", np.ones((1, 9), dtype=int))
    with pytest.raises(ValueError, match="ring type 'zigzag_ring'.*zigzag_ring_varlen"):
        SequencePlan.multiple(Topology(2, 2, 2), "zigzag_ring")
