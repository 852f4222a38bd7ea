"""Every topology of up to 16 ranks: groups are partitions, and fit each other."""

import pytest

from quicksviewer.train.sequence_parallel.topology import Topology, choose

DIVISORS = {n: [d for d in range(1, n + 1) if n % d == 0] for n in range(1, 17)}
ALL = [
    Topology(world, sequence, ring)
    for world, sequences in DIVISORS.items()
    for sequence in sequences
    for ring in DIVISORS[sequence]
]


@pytest.mark.parametrize("kind", ["data_groups", "sequence_groups", "ulysses_groups", "ring_groups"])
def test_every_rank_is_in_exactly_one_group_of_a_kind(kind):
    sizes = {"data_groups": "data", "sequence_groups": "sequence", "ulysses_groups": "ulysses"}
    for topology in ALL:
        groups = getattr(topology, kind)()
        assert sorted(rank for group in groups for rank in group) == list(range(topology.world))
        assert {len(group) for group in groups} == {getattr(topology, sizes.get(kind, "ring"))}
        assert all(group == sorted(group) for group in groups)


def test_ranks_and_groups_say_the_same():
    for topology in ALL:
        for group in topology.sequence_groups():
            assert group == list(range(group[0], group[0] + topology.sequence))
            assert len({topology.data_rank(rank) for rank in group}) == 1
            assert [topology.sequence_rank(rank) for rank in group] == list(range(topology.sequence))
        for group in topology.data_groups():
            assert [topology.data_rank(rank) for rank in group] == list(range(topology.data))
        for group in topology.ulysses_groups():
            assert [topology.ulysses_rank(rank) for rank in group] == list(range(topology.ulysses))
            assert len({(topology.data_rank(r), topology.ring_rank(r)) for r in group}) == 1
        for group in topology.ring_groups():
            assert [topology.ring_rank(rank) for rank in group] == list(range(topology.ring))
            assert len({(topology.data_rank(r), topology.ulysses_rank(r)) for r in group}) == 1


def test_a_team_is_a_ring_of_ulysses_groups():
    for topology in ALL:
        for rank in range(topology.world):
            team = topology.team(rank)
            assert team[topology.sequence_rank(rank)] == rank
            ring, ulysses = topology.ring_rank(rank), topology.ulysses_rank(rank)
            assert topology.sequence_rank(rank) == ring * topology.ulysses + ulysses


def test_neighbours_form_a_team():
    assert Topology(8, 4, 2).team(5) == [4, 5, 6, 7]
    assert Topology(8, 4, 2).ulysses_groups() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert Topology(8, 4, 2).ring_groups() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert Topology(8, 4, 2).data_groups() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_whatever_does_not_divide_is_refused_with_both_numbers():
    for world in range(1, 17):
        for sequence in set(range(1, 17)) - set(DIVISORS[world]):
            with pytest.raises(ValueError, match=f"{world} ranks.*teams of {sequence}"):
                Topology(world, sequence)
        for ring in set(range(1, 17)) - set(DIVISORS[world]):
            with pytest.raises(ValueError, match=f"team of {world}.*ring of {ring}"):
                Topology(world, world, ring)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (4, 0, 1), (4, 2, 0), (-2, -1, 1)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        Topology(*sizes)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_world_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank {rank} is not among the 4"):
        Topology(4, 2).data_rank(rank)


def test_the_chosen_ring_is_the_shortest_that_the_heads_allow():
    assert choose(8, heads=28) == Topology(8, 8, 2)
    assert choose(8, heads=32) == Topology(8, 8, 1)
    assert choose(8, heads=28, sequence=4) == Topology(8, 4, 1)
    assert choose(8, heads=28, sequence=4, ring=4) == Topology(8, 4, 4)
    assert choose(6, heads=4) == Topology(6, 6, 3)
    for heads in range(1, 33):
        for world in range(1, 17):
            shortest = next(r for r in DIVISORS[world] if heads % (world // r) == 0)
            assert choose(world, heads).ring == shortest


def test_heads_that_cannot_be_dealt_name_the_ring_that_helps():
    with pytest.raises(ValueError, match="28 attention heads.*8 ranks.*seq_parallel_ring_size.*is 2"):
        choose(8, heads=28, sequence=8, ring=1)
