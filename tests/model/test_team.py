"""Who has which frames, cubes and units, against dealing them one by one."""

import itertools

import pytest
import torch

from quicksviewer.model.team import Team, deal_cubes, deal_units, even_counts, own_slice


def test_even_counts_differ_by_one():
    for total in range(20):
        for parts in range(1, 9):
            counts = even_counts(total, parts)
            assert sum(counts) == total and max(counts) - min(counts) <= 1
            assert counts == sorted(counts, reverse=True)
            assert [i for rank in range(parts) for i in range(total)[own_slice(counts, rank)]] == [
                *range(total)
            ]


def cuttings(frames: int):
    """First frames of cubes, for every way to cut so many frames."""
    for inner in itertools.product([False, True], repeat=frames - 1):
        yield [0, *(frame for frame, cut in enumerate(inner, start=1) if cut)]


@pytest.mark.parametrize(("frames", "ranks"), [(1, 1), (1, 4), (5, 2), (6, 3), (7, 4), (3, 4)])
def test_every_cube_lies_whole_where_its_first_frame_was_seen(frames, ranks):
    held = even_counts(frames, ranks)
    seen_by = [rank for rank, count in enumerate(held) for _ in range(count)]
    for first in cuttings(frames):
        parts = deal_cubes(first, frames, held)
        ends = [*first[1:], frames]
        for rank, part in enumerate(parts):
            cubes = [c for c, start in enumerate(first) if seen_by[start] == rank]
            assert list(range(len(first))[part.cubes]) == cubes and part.num_cubes == len(cubes)
            needed = [f for c in cubes for f in range(first[c], ends[c])]
            assert list(range(frames)[part.frames]) == needed
            assert part.receive == [sum(seen_by[f] == other for f in needed) for other in range(ranks)]
            assert part.send == [other.receive[rank] for other in parts] and sum(part.send) == held[rank]


def test_units_stand_in_the_order_of_slots_and_thumbnails_with_their_first_cube():
    cubes, has_thumbnail = [2, 1, 3], [True, False, True]
    in_order = [6, 0, 1, 2, 7, 3, 4, 5]
    for held in ([6, 0, 0], [2, 2, 2], [1, 4, 1], [3, 0, 3]):
        parts = deal_cubes(range(6), 6, held)
        dealt = deal_units(parts, cubes, has_thumbnail)
        assert [unit for units in dealt for unit in units] == in_order
        for part, units in zip(parts, dealt, strict=True):
            assert [u for u in units if u < 6] == list(range(6)[part.cubes])
    # the last medium is a stand-in: its units are in nobody's order
    assert deal_units(deal_cubes(range(6), 6, [3, 3]), cubes[:2], has_thumbnail[:2]) == [[6, 0, 1, 2], []]


def test_one_process_keeps_what_it_has():
    team, x = Team(), torch.randn(3, 2)
    assert team.gather(x, [3]) is team.exchange(x, [3], [3]) is team.total(x) is x
    with pytest.raises(NotImplementedError, match="no shards"):
        team.cut({}, x, [])
