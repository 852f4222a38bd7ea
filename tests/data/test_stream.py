"""One order of samples, whoever reads it."""

import numpy as np
import pytest

from quicksviewer.data.stream import ORDERS, SampleStream, Share, StepSampler, shuffled

LENGTH = 23
SHARES = [(4, 1, 1), (2, 1, 2), (1, 1, 4), (1, 2, 2), (1, 4, 1), (2, 2, 1)]
"""(rows of a micro-batch, accumulation, processes) of the same step of four rows."""


def stream() -> SampleStream:
    return SampleStream(shuffled(LENGTH, "data", 7), LENGTH)


def steps_of(sampler_of_rank, world: int, accumulation: int, passes: int) -> list[list[int]]:
    """Rows of every optimizer step over all ranks, each step sorted."""
    samplers = [sampler_of_rank(rank) for rank in range(world)]
    walks = [[rows for _ in range(passes) for rows in sampler] for sampler in samplers]
    flat = [[row for walk in walks for row in walk[at]] for at in range(len(walks[0]))]
    groups = [flat[at : at + accumulation] for at in range(0, len(flat), accumulation)]
    return [sorted(row for micro in group for row in micro) for group in groups]


@pytest.mark.parametrize("per_device, accumulation, world", SHARES)
def test_the_rows_of_a_step_do_not_depend_on_who_reads_them(per_device, accumulation, world):
    def sampler(rank):
        share = Share(per_device=per_device, accumulation=accumulation, rank=rank, world=world)
        return StepSampler(stream(), share)

    expected = steps_of(lambda _: StepSampler(stream(), Share(per_device=4)), 1, 1, passes=3)
    assert steps_of(sampler, world, accumulation, passes=3) == expected


@pytest.mark.parametrize("name", ORDERS)
def test_every_row_comes_once_an_epoch(name):
    walk = SampleStream(ORDERS[name](LENGTH, "data", 7), LENGTH).take(0, 4 * LENGTH).reshape(4, LENGTH)
    assert all(sorted(epoch) == list(range(LENGTH)) for epoch in walk.tolist())


def test_epochs_differ_and_depend_on_data_and_seed_alone():
    def first(fingerprint, seed):
        return shuffled(LENGTH, fingerprint, seed)(0).tolist()

    assert first("data", 7) == first("data", 7)
    assert len({tuple(first(f, s)) for f in ("data", "other") for s in (7, 8)}) == 4
    assert shuffled(LENGTH, "data", 7)(0).tolist() != shuffled(LENGTH, "data", 7)(1).tolist()


@pytest.mark.parametrize("done", [0, 1, 5, 6, 11])
@pytest.mark.parametrize("per_device, accumulation, world", SHARES)
def test_a_walk_goes_on_where_another_ended(done, per_device, accumulation, world):
    """Also with other processes and micro-batches than before: the position is all it needs."""

    def sampler(rank):
        share = Share(per_device=per_device, accumulation=accumulation, rank=rank, world=world)
        return StepSampler(stream(), share, start=4 * done)

    calm = steps_of(lambda _: StepSampler(stream(), Share(per_device=4)), 1, 1, passes=4)
    resumed = steps_of(sampler, world, accumulation, passes=1)
    assert resumed == calm[done : done + len(resumed)]


def test_a_change_of_the_steps_size_loses_and_doubles_nothing():
    walk, position = [], 0
    for per_device in (4, 3, 5, 2):
        sampler = StepSampler(stream(), Share(per_device=per_device), start=position)
        batches = iter(sampler)
        walk += [row for _ in range(3) for row in next(batches)]
        position = sampler.position
    assert walk == stream().take(0, len(walk)).tolist()


def test_positions_across_epochs():
    rows = stream()
    whole = np.concatenate([shuffled(LENGTH, "data", 7)(epoch) for epoch in range(3)])
    assert rows.take(LENGTH - 2, 5).tolist() == whole[LENGTH - 2 : LENGTH + 3].tolist()
    assert rows.take(5, 0).tolist() == []


@pytest.mark.parametrize("bad", [{"per_device": 0}, {"per_device": 1, "rank": 2, "world": 2}])
def test_impossible_shares_are_refused(bad):
    with pytest.raises(ValueError, match="no share"):
        Share(**bad)
    with pytest.raises(ValueError, match="at least one row"):
        SampleStream(shuffled(0, "data", 7), 0)
