"""Yardsticks and gradients of cubing, against exhaustive enumeration."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing import CUBINGS, build_cubing
from quicksviewer.model.multimodal_cubing.base import GatedFrames
from quicksviewer.model.multimodal_cubing.optimal import best_cuts, span_costs
from quicksviewer.model.multimodal_cubing.router import smooth_cubes
from quicksviewer.model.multimodal_cubing.subsets import NEVER, Subsets

WIDTH = 8
SHARING = [kind for kind, row in CUBINGS.items() if getattr(row, "reads_shares", False)]


def frames(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def build(kind, seed=0, **values):
    torch.manual_seed(seed)
    cubing = build_cubing(CubingConfig(kind=kind, **values), WIDTH)
    for parameter in cubing.parameters():
        nn.init.normal_(parameter, std=0.5)
    return cubing


def squared_error(x, cuts):
    edges = [0, *cuts, len(x)]
    return sum(
        float((x[a:b] - x[a:b].mean(0)).square().sum()) for a, b in zip(edges, edges[1:], strict=False)
    )


# --- the optimum ---


def test_costs_of_all_spans():
    x = 50 + frames(9).double()
    cost = span_costs(x[None])[0]
    for i, j in itertools.product(range(10), repeat=2):
        if i < j:
            assert cost[i, j] == pytest.approx(squared_error(x[i:j], []), abs=1e-9)
        else:
            assert math.isinf(cost[i, j])


@pytest.mark.parametrize("shortest, longest", [(1, None), (2, 5), (3, 5)])
def test_optimal_cuts_are_the_best_of_all(shortest, longest):
    counts, starts = [12, 1, 2, 10, 11], [0, 12, 13, 15, 25]
    cubing = build("optimal", frames_per_cube=3, min_cube_frames=shortest, max_cube_frames=longest)
    x = frames(sum(counts))
    cuts = cubing(x, counts, [True] * 5)
    first = iter(cuts.first_frame.tolist())
    for start, count, cubes in zip(starts, counts, cuts.cubes, strict=True):
        ours = [next(first) - start for _ in range(cubes)][1:]
        film = x[start : start + count]
        allowed = [
            places
            for places in itertools.combinations(range(1, count), cubes - 1)
            if all(
                min(shortest, count) <= b - a <= (longest or count)
                for a, b in itertools.pairwise([0, *places, count])
            )
        ]
        best = min(allowed, key=lambda places, film=film: squared_error(film, places))
        assert squared_error(film, ours) == pytest.approx(squared_error(film, best), rel=1e-5)


def test_the_least_cost_is_that_of_the_cuts():
    x = frames(60)
    cost = span_costs(x[None])
    starts, total = best_cuts(cost, torch.tensor([60]), torch.tensor([9]), 9)
    assert float(total) == pytest.approx(squared_error(x.double(), starts[0, 1:].tolist()), rel=1e-6)


def test_change_points_are_the_largest_turns():
    x = frames(20)
    turn = 1 - F.cosine_similarity(x[:-1], x[1:])
    expected = (turn.topk(3).indices + 1).sort().values.tolist()
    assert build("change_point")(x, [20], [True]).first_frame.tolist() == [0, *expected]


# --- exactly k cuts ---


def enumerate_subsets(odds, cuts):
    rows = list(itertools.combinations(range(len(odds)), cuts))
    mask = torch.zeros(len(rows), len(odds), dtype=odds.dtype).scatter_(
        1, torch.tensor(rows).view(len(rows), -1), 1
    )
    return mask, (mask @ odds).softmax(dim=0)


def ragged_odds():
    odds = torch.randn(3, 9, dtype=torch.float64) * 2
    odds[1, 5:] = NEVER
    return odds, torch.tensor([3, 2, 1])


def test_marginals_and_counts_of_subsets_are_exact():
    odds, cuts = ragged_odds()
    subsets = Subsets(odds, cuts, 3)
    for row, length in enumerate([9, 5, 9]):
        mask, probability = enumerate_subsets(odds[row, :length], int(cuts[row]))
        torch.testing.assert_close(subsets.marginals()[row, :length], probability @ mask)
        number = mask.cumsum(dim=1)
        for j in range(4):
            expected = probability @ (number == j).double()
            torch.testing.assert_close(subsets.counts()[row, :length, j], expected, atol=1e-9, rtol=1e-7)


def test_gradients_of_marginals_are_exact():
    odds = torch.randn(7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64)
    mask, probability = enumerate_subsets(odds, 3)
    (expected,) = torch.autograd.grad((probability @ mask) @ weight, odds)
    (ours,) = torch.autograd.grad(Subsets(odds[None], torch.tensor([3]), 3).marginals()[0] @ weight, odds)
    torch.testing.assert_close(ours, expected)


def test_extreme_odds_stay_finite():
    odds = torch.tensor([[80.0, -80.0, 79.0, -300.0, 0.0, 200.0]], requires_grad=True)
    subsets = Subsets(odds, torch.tensor([3]), 3)
    (subsets.marginals().square().sum() + subsets.counts().square().sum()).backward()
    torch.testing.assert_close(subsets.marginals().sum(), torch.tensor(3.0), atol=1e-3, rtol=0)
    assert odds.grad.isfinite().all()


def test_samples_of_subsets_follow_their_distribution():
    odds = torch.randn(6)
    mask, probability = enumerate_subsets(odds, 2)
    draws = 20_000
    many = Subsets(odds.expand(draws, 6), torch.full((draws,), 2), 2)
    drawn = many.sample(torch.Generator().manual_seed(0)).float()
    assert drawn.sum(dim=1).eq(2).all()
    seen = (drawn @ mask.T == 2).float().mean(dim=0)
    torch.testing.assert_close(seen, probability, atol=0.012, rtol=0)


def test_reinmax_is_unbiased_for_a_quadratic_of_one_gate():
    """Where the plain straight-through gradient is not."""
    cubing, odds = build("reinmax", tau=1.0), torch.tensor([0.7], requires_grad=True)
    gated = GatedFrames.of([2], [True], odds.device)
    total = 0.0
    for hard, probability in ((1.0, odds.detach().sigmoid()), (0.0, 1 - odds.detach().sigmoid())):
        cubing.choose = lambda *_, hard=hard: torch.tensor([hard])
        drawn = cubing.draw(torch.stack([-odds / 2, odds / 2], dim=1), gated, [1], 0.0, None)
        mask = cubing.weights(drawn)
        (slope,) = torch.autograd.grad(3 * mask**2 - mask, odds)
        total += probability * slope
    (exact,) = torch.autograd.grad(odds.sigmoid() * (3 - 1), odds)
    torch.testing.assert_close(total, exact)


# --- what the cubings hand on ---


@pytest.mark.parametrize("kind", SHARING)
def test_shares_are_hard_in_value_or_probabilities_and_never_leave_a_video(kind):
    counts, is_video = [9, 1, 1, 14, 2], [True, False, True, True, True]
    cubing = build(kind, frames_per_cube=3)
    cuts = cubing(frames(sum(counts)), counts, is_video, 0.5, torch.Generator().manual_seed(0))
    assert cuts.share.shape == (sum(counts), 3)
    if kind != "soft":
        torch.testing.assert_close(cuts.share, torch.tensor([0.0, 1.0, 0.0]).expand_as(cuts.share))
    else:
        assert (cuts.share.sum(dim=1) <= 1.001).all() and (cuts.share >= 0).all()
    (cuts.share * torch.randn_like(cuts.share)).sum().backward()
    assert all(p.grad is not None for p in cubing.proj_fn.parameters())
    cubing.eval()
    assert cubing(frames(sum(counts)), counts, is_video).share is None


@pytest.mark.parametrize("kind", SHARING)
def test_a_share_outside_the_video_is_nothing(kind):
    """First cubes of a video have none before them, last cubes none after: value and gradient are zero."""
    counts = [8, 11]
    cubing = build(kind, frames_per_cube=4)
    cuts = cubing(frames(19), counts, [True, True])
    first, last = cuts.cube_of_frame == 0, cuts.cube_of_frame == cuts.cubes[0] - 1
    next_first = cuts.cube_of_frame == cuts.cubes[0]
    outside = cuts.share[first, 0].sum() + cuts.share[last, 2].sum() + cuts.share[next_first, 0].sum()
    assert float(outside.detach()) < 1e-4
    cubing.zero_grad()
    outside.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in cubing.parameters())


@pytest.mark.parametrize("kind", sorted(CUBINGS))
def test_inference_is_the_same_twice_and_training_follows_the_generator(kind):
    cubing, x = build(kind), frames(60)
    noisy = [
        cubing(x, [60], [True], 1.0, torch.Generator().manual_seed(s)).first_frame.tolist() for s in (1, 1, 2)
    ]
    assert noisy[0] == noisy[1]
    if kind in ("momentum", "cumulative", "reinmax", "subset"):
        assert noisy[0] != noisy[2]
    cubing.eval()
    assert torch.equal(cubing(x, [60], [True]).first_frame, cubing(x, [60], [True]).first_frame)


def test_estimators_cut_alike_at_inference():
    x = frames(50)
    cuts = [build(kind).eval()(x, [50], [True]).first_frame for kind in ("momentum", *SHARING)]
    assert all(torch.equal(cuts[0], other) for other in cuts)


def test_soft_cubes_are_those_of_the_mean_number():
    cubing = build("soft", frames_per_cube=4)
    cuts = cubing(frames(40), [40], [True])
    number = cuts.mask.detach()[1:].cumsum(0)
    assert (cuts.cube_of_frame[1:] - number).abs().max() <= 0.5 + 1e-3
    assert float(cuts.mask.detach().sum()) == pytest.approx(10, abs=1e-3)


def test_smoothing_is_the_recursion():
    tokens, own = torch.randn(11, 3, 4), torch.rand(11)
    own[[0, 6]] = 1.0
    expected = [tokens[0]]
    for c in range(1, 11):
        expected.append(own[c] * tokens[c] + (1 - own[c]) * expected[-1])
    torch.testing.assert_close(smooth_cubes(tokens, own), torch.stack(expected))


@pytest.mark.parametrize("scale, moves", [(-1.0, -1), (1.0, 1)])
def test_a_step_along_the_ratio_loss_leads_towards_the_plan(scale, moves):
    """Neighbours projected apart: every probability is above one half and must fall; and the other way."""
    cubing, still = build("router"), frames(1).expand(40, WIDTH) + 0.1 * frames(40, seed=2)
    with torch.no_grad():
        cubing.before_fn.weight.copy_(torch.eye(WIDTH))
        cubing.after_fn.weight.copy_(scale * torch.eye(WIDTH))
    cuts = cubing(still, [40], [True])
    (grad,) = torch.autograd.grad(cuts.penalty(), cubing.after_fn.weight)
    before = cuts.gate_logits.detach().diff(dim=1).mean()
    with torch.no_grad():
        cubing.after_fn.weight -= 1e-3 * grad
        after = cubing(still, [40], [True]).gate_logits.diff(dim=1).mean()
    assert (after - before) * moves > 0


@pytest.mark.parametrize("kind", sorted(CUBINGS))
def test_still_videos_are_cut_and_have_gradients(kind):
    still = frames(1).expand(20, WIDTH).clone().requires_grad_()
    cuts = build(kind)(still, [20], [True], 0.5, torch.Generator().manual_seed(0))
    assert len(cuts.first_frame) == 4
    if cuts.penalty() is not None:
        (cuts.mask.sum() + cuts.penalty() + (0 if cuts.share is None else cuts.share[:, 0].sum())).backward()
        assert still.grad.isfinite().all()


@pytest.mark.parametrize("kind", sorted(CUBINGS))
def test_a_whole_model_learns_with_every_cubing(kind, tiny):
    """One training step gives every weight of the cubing a gradient; then the model answers."""
    from tiny_world import fresh, video_row, videos

    from quicksviewer.data.collator import DataCollatorForSupervisedDataset

    loaded = fresh(tiny, cubing={"kind": kind})
    batch = DataCollatorForSupervisedDataset(loaded.processor.pad_id)(
        [video_row(loaded, path) for path in videos(tiny)[:2]]
    )
    model = loaded.model.train()
    inputs = {k: v for k, v in batch.items() if k not in ("loss_weights", "groups")}
    generator = torch.Generator().manual_seed(0)
    out = model(**inputs, noise_weight=0.5, noise_generator=generator)
    (out.loss + (0 if out.gate_penalty is None else 1e-3 * out.gate_penalty)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.cubing.parameters())
    assert not list(model.cubing.parameters()) or any(
        p.grad.abs().sum() > 0 for p in model.cubing.parameters()
    )
    with torch.no_grad():
        assert model.eval()(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("kind", SHARING)
def test_the_gate_learns_without_a_thumbnail_where_cubes_teach_it(kind, tiny):
    from tiny_world import fresh, video_row, videos

    from quicksviewer.data.collator import DataCollatorForSupervisedDataset

    loaded = fresh(tiny, cubing={"kind": kind}, thumbnail={"enabled": False})
    batch = DataCollatorForSupervisedDataset(loaded.processor.pad_id)([video_row(loaded, videos(tiny)[0])])
    inputs = {k: v for k, v in batch.items() if k not in ("loss_weights", "groups")}
    loaded.model.train()(**inputs).loss.backward()
    assert loaded.model.cubing.proj_fn[3].weight.grad.abs().sum() > 0
