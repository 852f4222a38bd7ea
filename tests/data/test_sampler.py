"""Orders of samples: every index once, the same for any world, really grouped, really balanced."""

import numpy as np
import pytest

from quicksviewer.data.sampler import CostModel, DealByCost, LengthGroupedSampler, deal
from quicksviewer.data.stream import SampleStream, Share, StepSampler, epoch_rng, shuffled

RNG = np.random.default_rng(0)
LENGTHS = np.clip(RNG.lognormal(6, 1.1, 5003), 20, 16384).astype(int)
GROUPS = RNG.choice(3, 5003, p=[0.2, 0.5, 0.3])


def padding(order: np.ndarray, rows: int) -> float:
    """Share of padding in batches of so many rows."""
    batches = LENGTHS[order][: len(order) // rows * rows].reshape(-1, rows)
    return 1 - batches.sum() / (batches.max(axis=1) * rows).sum()


def orders(count: int, fingerprint: str = "f", seed: int = 1) -> list[list[int]]:
    """Of the first two epochs."""
    sampler = LengthGroupedSampler(LENGTHS[:count], GROUPS[:count], 8, fingerprint, seed)
    first = list(sampler)
    sampler.set_epoch(1)
    return [first, list(sampler)]


@pytest.mark.parametrize("count", [0, 1, 5, 8, 1000, 5003])
def test_every_index_stands_once_in_every_epoch(count):
    first, second = orders(count)
    assert sorted(first) == sorted(second) == list(range(count))
    assert count < 1000 or first != second


def test_the_order_follows_from_fingerprint_seed_and_epoch():
    assert orders(1000) == orders(1000)
    assert orders(1000) != orders(1000, fingerprint="g") and orders(1000) != orders(1000, seed=2)


@pytest.mark.parametrize("per_device", [1, 2])
def test_the_rows_of_a_step_do_not_depend_on_the_number_of_ranks(per_device):
    found = []
    for world in (1, 2, 4, 8):
        stream = SampleStream(shuffled(1001, "f", 0), 1001)
        shares = [
            Share(per_device=per_device, accumulation=16 // world // per_device, rank=rank, world=world)
            for rank in range(world)
        ]
        of_rank = [list(StepSampler(stream, share, 0, DealByCost(LENGTHS[:1001]))) for share in shares]
        rows = [sum(batches, []) for batches in of_rank]
        each = 16 // world
        found.append([sorted(sum((r[i : i + each] for r in rows), [])) for i in range(0, len(rows[0]), each)])
    assert all(steps == found[0] for steps in found) and len(found[0]) == 63


@pytest.mark.parametrize("rows", [2, 4, 16])
@pytest.mark.parametrize("groups", [GROUPS, np.zeros(5003, int)], ids=["mixed", "one modality"])
def test_rows_of_a_step_are_alike(rows, groups):
    order = LengthGroupedSampler(LENGTHS, groups, rows).order(0)
    assert padding(order, rows) < 0.25 * padding(epoch_rng("f", 0, 0).permutation(5003), rows)
    full = groups[order][: 5003 // rows * rows].reshape(-1, rows)
    mixed = (full != full[:, :1]).any(axis=1)
    assert mixed.sum() <= 3 and not mixed[:-3].any(), "only rows that fill no step are mixed, at the end"


def test_batches_of_one_row_on_many_ranks_are_grouped_too():
    """The published sampler sorts within one step and so does nothing for one row a rank."""
    order = LengthGroupedSampler(LENGTHS, GROUPS, step_rows=8).order(0)
    spread = LENGTHS[order][:5000].reshape(-1, 8)
    assert np.median(spread.min(axis=1) / spread.max(axis=1)) > 0.9


def test_steps_come_in_random_order():
    order = LengthGroupedSampler(LENGTHS, GROUPS, step_rows=8).order(0)
    means = LENGTHS[order][:4992].reshape(-1, 8).mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15


def packs_with_costs(count: int) -> np.ndarray:
    """Costs of packs equal in tokens: video and the squares of long samples make them differ."""
    rng = np.random.default_rng(3)
    return 16384 * (1 + rng.uniform(0, 1.2, count) + 0.3 * rng.exponential(1, count).clip(0, 3))


def test_ranks_finish_together_and_steps_stay_random():
    costs, ranks, micro = packs_with_costs(64 * 8 * 20), 64, 8
    order = epoch_rng("f", 0, 0).permutation(len(costs))
    dealt = deal(order, costs, ranks, micro)
    assert sorted(dealt.tolist()) == list(range(len(costs)))
    of_rank = costs[dealt].reshape(-1, micro, ranks).sum(axis=1)
    assert (of_rank.mean(axis=1) / of_rank.max(axis=1)).min() >= 0.98
    before = costs[order].reshape(-1, micro * ranks).var(axis=1).mean()
    assert costs[dealt].reshape(-1, micro * ranks).var(axis=1).mean() == pytest.approx(before)


def test_dealing_is_optimal_where_an_optimum_is_known():
    assert deal(np.arange(4), np.array([1.0, 4, 2, 3]), 2, 2).tolist() == [1, 3, 0, 2]


def test_a_cost_counts_what_it_names():
    sizes = np.array([[10, 2, 100]])
    assert CostModel(token=1, frame=5, square=0.1)(sizes).tolist() == [30.0]
    decoding = CostModel(token=1, frame=5, square=0.1, decode=2.0)
    assert decoding(sizes).tolist() == [30.0] and decoding(sizes, np.array([7.0])).tolist() == [44.0]
    assert CostModel.of_model(7e9, 28, 3584, 6e11, 1e11).decode == pytest.approx(1e11 / 4.2e10)
    model = CostModel.of_model(7e9, 28, 3584, 6e11)
    assert model.frame == pytest.approx(6e11 / 4.2e10) and model.square == pytest.approx(
        6 * 28 * 3584 / 4.2e10
    )


def test_rows_that_fill_no_step_are_dealt_too():
    assert sorted(deal(np.arange(11), LENGTHS[:11], 4, 2).tolist()) == list(range(11))
    assert deal(np.arange(0), LENGTHS, 4, 2).tolist() == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: CostModel(token=0.0),
        lambda: CostModel(frame=-1.0),
        lambda: deal(np.arange(3), np.ones(3), 0, 1),
        lambda: LengthGroupedSampler([1], [0], 0).order(0),
        lambda: LengthGroupedSampler([1], [0, 1], 1).order(0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError):
        make()
