"""Packing: each sample once, under each cap, as few packs as the sums allow; nothing cut or added."""

import itertools

import numpy as np
import pytest

from quicksviewer.data.packing import (
    Caps,
    Packs,
    best_fit,
    fewest_packs,
    plan_packs,
    sizes_of,
    stream_packs,
)


def mixed(count: int, seed: int = 0) -> np.ndarray:
    """Sizes of texts, images and videos, heavy-tailed, as a training set has them."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, count, p=[0.3, 0.4, 0.3])
    text = np.clip(rng.lognormal(4.8, 0.9, count), 12, 3000).astype(int)
    pictures, frames = rng.integers(1, 6, count), np.clip(rng.lognormal(4, 0.9, count), 4, 420).astype(int)
    cubes = np.maximum(frames // 5, 2)
    tokens = np.select([kind == 0, kind == 1], [text, text + 66 * pictures], text + 66 + 69 * cubes)
    return sizes_of(tokens, np.select([kind == 0, kind == 1], [0 * text, pictures], frames))


def check(packs: Packs, sizes: np.ndarray, caps: Caps) -> None:
    assert sorted(packs.samples.tolist()) == list(range(len(sizes))), "each sample exactly once"
    assert (np.diff(packs.starts) > 0).all(), "no empty pack"
    assert (packs.totals(sizes) <= caps.as_row()).all()


def textbook_best_fit(lengths, cap: int) -> int:
    """Number of packs of best-fit decreasing, written as its definition."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fits = [place for place, room in enumerate(rooms) if room >= length]
        if fits:
            rooms[min(fits, key=rooms.__getitem__)] -= length
        else:
            rooms.append(cap - length)
    return len(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_counting_gives_as_many_packs_as_the_definition(seed):
    rng = np.random.default_rng(seed)
    cap = int(rng.integers(5, 200))
    lengths = rng.integers(1, cap + 1, int(rng.integers(1, 300)))
    owner = best_fit(lengths, cap)
    assert (np.bincount(owner, weights=lengths) <= cap).all()
    assert owner.max() + 1 == textbook_best_fit(lengths.tolist(), cap)


def fewest_by_trying(lengths: list[int], cap: int) -> int:
    for count in itertools.count(1):
        for owners in itertools.product(range(count), repeat=len(lengths)):
            if (
                max(sum(n for n, o in zip(lengths, owners, strict=True) if o == b) for b in range(count))
                <= cap
            ):
                return count


@pytest.mark.parametrize("seed", range(6))
def test_at_most_one_pack_more_than_the_best_there_is(seed):
    lengths = np.random.default_rng(seed).integers(2, 20, 6).tolist()
    assert best_fit(lengths, 20).max() + 1 <= fewest_by_trying(lengths, 20) + 1


def test_tokens_alone_fill_packs_to_the_bound():
    sizes, caps = mixed(20_000), Caps(tokens=8192)
    packs = plan_packs(sizes, caps)
    check(packs, sizes, caps)
    assert len(packs) <= -(-sizes[:, 0].sum() // caps.tokens) + 1


@pytest.mark.parametrize("squares", [None, 2.0])
def test_tokens_and_frames_fill_up_together(squares):
    sizes = mixed(20_000)
    mean = sizes.sum(axis=0) / (sizes[:, 0].sum() / 16384)
    cap = None if squares is None else max(int(squares * mean[2]), int(sizes[:, 2].max()))
    caps = Caps(tokens=16384, frames=int(1.05 * mean[1]), squares=cap)
    packs = plan_packs(sizes, caps)
    check(packs, sizes, caps)
    fill = (packs.totals(sizes) / caps.as_row()).mean(axis=0)
    assert fill[0] >= 0.98 and fill[1] >= 0.90


@pytest.mark.parametrize("seed", range(30))
def test_any_caps_hold_for_any_samples(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    sizes = sizes_of(rng.integers(1, 100, count), rng.integers(0, 50, count))
    caps = Caps(
        tokens=int(sizes[:, 0].max() * rng.uniform(1, 4)),
        frames=int(max(sizes[:, 1].max(), 1) * rng.uniform(1, 3)) if seed % 3 else None,
        squares=int(sizes[:, 2].max() * rng.uniform(1, 3)) if seed % 2 else None,
    )
    check(plan_packs(sizes, caps), sizes, caps)
    for pool in (1, 7, 1024):
        check(Packs.from_lists(list(stream_packs(sizes, caps, pool))), sizes, caps)


def test_frames_that_bind_are_filled_to_their_bound():
    sizes = mixed(5_000, seed=2)
    caps = Caps(tokens=10**6, frames=600)
    packs = plan_packs(sizes, caps)
    check(packs, sizes, caps)
    assert len(packs) <= 1.01 * fewest_packs(sizes, caps) + 1


@pytest.mark.parametrize("frames", [None, 800])
def test_a_pool_packs_nearly_as_well_as_the_whole_list(frames):
    sizes, caps = mixed(20_000), Caps(tokens=16384, frames=frames)
    packs = list(stream_packs(iter(sizes.tolist()), caps))
    fill = Packs.from_lists(packs).totals(sizes)[:, 0].mean() / caps.tokens
    assert fill >= 0.99
    for number, pack in enumerate(packs):
        assert min(pack) == min(i for later in packs[number : number + 50] for i in later), (
            "the oldest goes first"
        )


def test_the_plan_is_the_same_every_time():
    sizes, caps = mixed(3_000), Caps(tokens=4096 * 2, frames=500)
    one, two = plan_packs(sizes, caps), plan_packs(sizes.copy(), caps)
    assert (one.samples == two.samples).all() and (one.starts == two.starts).all()


@pytest.mark.parametrize("pack", [lambda s, c: plan_packs(s, c), lambda s, c: list(stream_packs(s, c))])
def test_a_sample_that_fits_nowhere_is_named(pack):
    sizes = sizes_of([10, 99, 10], [0, 0, 0])
    with pytest.raises(ValueError, match="sample 1 has 99 tokens, a pack holds 50"):
        pack(sizes, Caps(tokens=50))
    with pytest.raises(ValueError, match="sample 2 has 9 frames, a pack holds 4"):
        pack(sizes_of([10, 10, 10], [0, 4, 9]), Caps(tokens=50, frames=4))
    with pytest.raises(ValueError, match="sample 0 has 0 tokens"):
        pack(sizes_of([0], [0]), Caps(tokens=50))


def test_no_samples_no_packs():
    assert len(plan_packs(sizes_of([], []), Caps(tokens=5))) == 0
    assert len(plan_packs(sizes_of([], []), Caps(tokens=5, frames=5))) == 0
    assert list(stream_packs([], Caps(tokens=5))) == []


def test_caps_refuse_nonsense():
    for wrong in ({"tokens": 0}, {"tokens": 5, "frames": 0}, {"tokens": 2**21}):
        with pytest.raises(ValueError, match="cap of"):
            Caps(**wrong)
