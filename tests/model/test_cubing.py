"""Cubing: where videos are cut, and that batches, types and sizes do not change it."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from quicksviewer.model.config import CubingConfig, ResamplerConfig, ThumbnailConfig
from quicksviewer.model.multimodal_cubing import CUBINGS, Thumbnail, build_cubing, pool_frames
from quicksviewer.model.multimodal_cubing.choose import repair_lengths, top_k
from quicksviewer.model.multimodal_cubing.momentum import momentum
from quicksviewer.model.multimodal_resampler.perceiver import PerceiverResampler

WIDTH = 16
YARDSTICKS = {"uniform", "change_point", "optimal"}
"""Kinds without weights."""
BATCH = [7, 1, 30, 2, 1, 12]
KINDS = [True, False, True, True, True, True]


def make(seed=0, **values):
    torch.manual_seed(seed)
    cubing = build_cubing(CubingConfig(**values), WIDTH)
    for parameter in cubing.parameters():  # larger than at the start, so that decisions are clear
        torch.nn.init.normal_(parameter, std=0.5)
    return cubing


def features(num_frames, seed=1, width=WIDTH):
    return torch.randn(num_frames, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.8, 0.3, 0.02, 1.0])
def test_momentum_is_the_running_mean(alpha):
    difference = torch.randn(2, 300, 5, dtype=torch.float64)
    expected = [difference[:, 0]]
    for t in range(1, 300):
        expected.append(alpha * difference[:, t] + (1 - alpha) * expected[-1])
    torch.testing.assert_close(
        momentum(difference, alpha), torch.stack(expected, dim=1), atol=1e-7, rtol=1e-7
    )


def test_top_k_per_row_prefers_the_earlier_of_equals():
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, -torch.inf]])
    assert top_k(score, torch.tensor([2, 1])).tolist() == [
        [False, True, True, False],
        [True, False, False, False],
    ]


@pytest.mark.parametrize(
    "values", [{}, {"energy_features": False}, {"min_cube_frames": 2, "max_cube_frames": 6}]
)
@pytest.mark.parametrize("kind", sorted(CUBINGS))
def test_cuts_of_a_batch(kind, values):
    cubing = make(kind=kind, **values).train(kind != "soft")  # whose mask is soft in training
    cuts = cubing(features(sum(BATCH)), BATCH, KINDS)
    assert cuts.cubes == [cubing.num_cubes(n) if v else 1 for n, v in zip(BATCH, KINDS, strict=True)]
    total = sum(cuts.cubes)
    assert cuts.cube_of_frame.unique().tolist() == list(range(total))
    assert cuts.first_frame.tolist() == [cuts.cube_of_frame.tolist().index(c) for c in range(total)]
    hard = cuts.mask.detach().round()
    torch.testing.assert_close(cuts.mask.detach(), hard)
    assert hard.nonzero().flatten().tolist() == cuts.first_frame.tolist()
    assert set(torch.tensor([0, *BATCH[:-1]]).cumsum(0).tolist()) <= set(cuts.first_frame.tolist())
    if kind not in YARDSTICKS:
        assert cuts.gate_logits.shape == (sum(n - 1 for n, v in zip(BATCH, KINDS, strict=True) if v), 2)
    else:
        assert cuts.gate_logits is None and not list(cubing.parameters())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"energy_features": False},
        {"min_cube_frames": 3, "max_cube_frames": 5},
        *({"kind": kind} for kind in sorted(CUBINGS)),
    ],
)
def test_a_batch_is_cut_like_its_media_alone(values):
    cubing = make(**values)
    frames_ND = features(sum(BATCH))
    together = cubing(frames_ND, BATCH, KINDS)
    start = cubes = gates = 0
    for num_frames, video in zip(BATCH, KINDS, strict=True):
        alone = cubing(frames_ND[start : start + num_frames], [num_frames], [video])
        assert torch.equal(alone.cube_of_frame + cubes, together.cube_of_frame[start : start + num_frames])
        if alone.gate_logits is not None:
            part = together.gate_logits[gates : gates + num_frames - 1]
            torch.testing.assert_close(alone.gate_logits, part, atol=1e-5, rtol=1e-5)
            gates += num_frames - 1
        start, cubes = start + num_frames, cubes + alone.cubes[0]
    assert gates == (0 if together.gate_logits is None else len(together.gate_logits))


@pytest.mark.parametrize("kind", sorted(CUBINGS))
@pytest.mark.parametrize("num_frames, cubes", [(1, 1), (2, 2), (3, 2), (10_000, 2000)])
def test_short_and_long_videos(kind, num_frames, cubes):
    if kind == "optimal" and num_frames > 1000:
        pytest.skip("its memory grows with the square of the frames, as it says")
    cuts = make(kind=kind).eval()(features(num_frames), [num_frames], [True])
    assert cuts.cubes == [cubes] and len(cuts.first_frame) == cubes
    assert int(cuts.cube_of_frame[-1]) == cubes - 1


def test_a_still_video_is_finite():
    still = features(1).expand(20, WIDTH).clone().requires_grad_()
    cuts = make()(still, [20], [True])
    (cuts.gate_logits.sum() + (cuts.mask * torch.randn(20)).sum()).backward()
    assert len(cuts.first_frame) == 4
    assert cuts.gate_logits.isfinite().all() and still.grad.isfinite().all()


def test_uniform_cuts():
    cuts = make(kind="uniform")(features(13), [12, 1], [True, False])
    assert cuts.first_frame.tolist() == [0, 6, 12]
    assert make(kind="uniform", frames_per_cube=4)(features(11), [11], [True]).first_frame.tolist() == [
        0,
        3,
        7,
    ]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", sorted(CUBINGS))
def test_bfloat16_frames_are_cut_like_their_float32_values(kind, training):
    frames_ND = features(60).bfloat16()
    cubing = make(kind=kind).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        low = cubing(frames_ND, [60], [True])
    high = cubing(frames_ND.float(), [60], [True])
    assert torch.equal(low.first_frame, high.first_frame) and torch.equal(low.mask, high.mask)
    if kind not in YARDSTICKS:
        assert torch.equal(low.gate_logits, high.gate_logits) and low.gate_logits.dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", sorted(CUBINGS))
def test_frames_that_are_no_numbers_do_not_change_what_is_counted(kind, training, value):
    """They are refused after the cut, or at the step's end: until then every index must be one."""
    frames_ND = features(sum(BATCH))
    frames_ND[[3, 12, 13, 40]] = value
    cuts = make(kind=kind).train(training)(frames_ND, BATCH, KINDS)
    total = sum(cuts.cubes)
    assert len(cuts.first_frame) == total and int(cuts.first_frame.min()) >= 0
    assert int(cuts.cube_of_frame.min()) == 0 and int(cuts.cube_of_frame.max()) == total - 1
    assert int(cuts.first_frame.max()) < sum(BATCH)


def test_bfloat16_weights_compute_in_float32():
    cubing = make().bfloat16()
    low = cubing(features(60), [60], [True])
    high = cubing.float()(features(60), [60], [True])
    assert torch.equal(low.gate_logits, high.gate_logits)


def test_a_large_gate_does_not_tie():
    cubing = make(energy_features=False)
    with torch.no_grad():
        cubing.proj_fn[3].weight.mul_(1e4)
    odds = cubing(features(200), [200], [True]).gate_logits.diff(dim=1).flatten()
    expected = (odds.argsort(descending=True)[:39] + 1).sort().values
    assert cubing(features(200), [200], [True]).first_frame[1:].tolist() == expected.tolist()


def test_energies_let_the_gate_see_the_strength_of_a_change():
    weak, strong = features(20) * 0.1, features(20) * 10
    blind, seeing = make(energy_features=False), make()
    for cubing in (blind, seeing):  # without biases the published gate sees only directions
        torch.nn.init.zeros_(cubing.agg_frame_fn[0].bias)
    apart = [
        (c(weak, [20], [True]).gate_logits - c(strong, [20], [True]).gate_logits).abs().max()
        for c in (blind, seeing)
    ]
    assert apart[0] < 0.05 < apart[1]


def noisy(cubing, seed, weight=5.0):
    generator = torch.Generator().manual_seed(seed)
    return cubing(features(100), [100], [True], noise_weight=weight, generator=generator)


def test_noise_is_the_generator():
    cubing = make()
    assert torch.equal(noisy(cubing, 1).first_frame, noisy(cubing, 1).first_frame)
    assert not torch.equal(noisy(cubing, 1).first_frame, noisy(cubing, 2).first_frame)
    assert torch.equal(noisy(cubing, 1).gate_logits, noisy(cubing, 2).gate_logits)


def test_without_noise_nothing_is_drawn():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    cubing = make()
    quiet = cubing(features(100), [100], [True], noise_weight=0.0, generator=generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(quiet.first_frame, cubing(features(100), [100], [True]).first_frame)


def test_noise_is_gumbel():
    """The difference of two Gumbel variables is logistic: mean 0, standard deviation pi / sqrt(3)."""
    cubing, seen = make(energy_features=False), []
    choose = cubing.choose
    cubing.choose = lambda odds, *rest: seen.append(odds) or choose(odds, *rest)
    for weight in (0.0, 0.5):
        cubing(features(20_001), [20_001], [True], weight, torch.Generator().manual_seed(0))
    noise = (seen[1] - seen[0]) * cubing.config.tau / 0.5
    assert abs(noise.mean()) < 0.05
    assert noise.std() == pytest.approx(math.pi / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("shortest, longest", [(2, 6), (3, None), (1, 5), (5, 9)])
def test_limits_of_cube_lengths_hold(shortest, longest):
    counts = [1, 2, 4, 9, 23, 57, 200]
    cubing = make(min_cube_frames=shortest, max_cube_frames=longest)
    cuts = cubing(features(sum(counts)), counts, [True] * len(counts))
    sizes = iter(cuts.cube_of_frame.bincount().tolist())
    for num_frames, cubes in zip(counts, cuts.cubes, strict=True):
        for size in (next(sizes) for _ in range(cubes)):
            assert size >= min(shortest, num_frames)
            assert longest is None or size <= longest


def test_cuts_that_keep_the_limits_stay():
    cut = torch.zeros(2, 19, dtype=torch.bool)
    cut[0, [4, 9, 13]] = True
    cut[1, [2]] = True
    kept = repair_lengths(cut, torch.tensor([20, 8]), torch.tensor([4, 2]), 4, (3, 7))
    assert torch.equal(kept, cut)
    cut[0] = False
    cut[0, [0, 1, 2]] = True
    moved = repair_lengths(cut, torch.tensor([20, 8]), torch.tensor([4, 2]), 4, (3, 7))
    assert (moved[0].nonzero().flatten() + 1).tolist() == [3, 6, 13]
    assert torch.equal(moved[1], cut[1])


@pytest.mark.parametrize("pooling", ["grid", "runs"])
def test_the_gate_learns_through_the_thumbnail(pooling):
    cubing, thumbnail = make(), Thumbnail(ThumbnailConfig(pooling=pooling), WIDTH, 24, 4)
    tokens = torch.randn(sum(BATCH), 16, WIDTH)
    cuts = cubing(pool_frames(tokens), BATCH, KINDS)
    out = thumbnail(tokens, cuts.mask, BATCH, KINDS)
    assert out.shape == (sum(KINDS), 4, 24)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in [*cubing.named_parameters(), *thumbnail.named_parameters()]:
        assert parameter.grad.abs().sum() > 0, name


def test_a_thumbnail_is_the_mean_of_the_opening_frames():
    thumbnail = Thumbnail(ThumbnailConfig(pooling="grid"), WIDTH, 24, 4)
    tokens = torch.randn(6, 16, WIDTH)
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    out = thumbnail(tokens, mask, [1, 4, 1], [False, True, True])
    blocks = tokens.view(6, 2, 2, 2, 2, WIDTH).mean(dim=(2, 4)).flatten(1, 2)
    expected = thumbnail.thumbnail_fn[1](torch.stack([blocks[[1, 3]].mean(0), blocks[5]]))
    torch.testing.assert_close(out, expected)
    assert thumbnail(tokens[:1], mask[:1], [1], [False]).shape == (0, 4, 24)


def test_frames_are_pooled_in_float32():
    tokens = torch.randn(3, 576, WIDTH).bfloat16()
    assert torch.equal(pool_frames(tokens), tokens.float().mean(dim=1))


@pytest.mark.parametrize(
    "values", [*({"kind": kind} for kind in CUBINGS), {"min_cube_frames": 3, "max_cube_frames": 5}]
)
def test_no_value_is_read_back_from_the_device(values):
    """Fake tensors have shapes but no values, so that any look at one raises."""
    with FakeTensorMode():
        cubing = build_cubing(CubingConfig(**values), WIDTH)
        thumbnail = Thumbnail(ThumbnailConfig(), WIDTH, 24, 4)
        resampler = PerceiverResampler(ResamplerConfig(queries=4), WIDTH, 64, 16)
        tokens = torch.empty(sum(BATCH), 16, WIDTH)
        cuts = cubing(pool_frames(tokens), BATCH, KINDS, noise_weight=1.0)
        cubes = resampler(tokens, cuts.cube_of_frame, sum(cuts.cubes), torch.empty(sum(BATCH)), cuts.share)
        with pytest.raises(DataDependentOutputException):
            cuts.cube_of_frame[-1].item()
        assert cubes.shape == (sum(cuts.cubes), 4, 64)
        assert cuts.first_frame.shape == (sum(cuts.cubes),)
        assert thumbnail(tokens, cuts.mask, BATCH, KINDS).shape == (sum(KINDS), 4, 24)


def test_an_image_of_two_frames_is_refused():
    with pytest.raises(ValueError, match="an image is one frame"):
        make()(features(2), [2], [False])


def test_size_at_the_published_widths():
    with torch.device("meta"):
        cubing = build_cubing(CubingConfig(energy_features=False), 1152)
        thumbnail = Thumbnail(ThumbnailConfig(), 1152, 3584, 64)
    assert sum(p.numel() for m in (cubing, thumbnail) for p in m.parameters()) == 6_793_474


def test_an_untrained_gate_cuts_where_most_changes():
    """The prior: scenes that differ much, frames within a scene that differ little."""
    torch.manual_seed(0)
    scenes = torch.randn(4, 8).repeat_interleave(torch.tensor([7, 1, 2, 6]), dim=0)
    frames = scenes + 0.05 * torch.randn(16, 8)
    cubing = build_cubing(CubingConfig(frames_per_cube=4), 8)
    assert cubing(frames, [16], [True]).first_frame.tolist() == [0, 7, 8, 10]
    blank = build_cubing(CubingConfig(frames_per_cube=4, energy_prior=0.0), 8)
    assert blank(frames, [16], [True]).gate_logits.abs().max() < 0.1


def test_the_prior_of_a_video_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    cubing = build_cubing(CubingConfig(frames_per_cube=4), 8)
    calm, wild = torch.randn(9, 8), 100 * torch.randn(12, 8)
    alone = cubing(calm, [9], [True]).gate_logits
    beside = cubing(torch.cat([wild, calm]), [12, 9], [True, True]).gate_logits[-8:]
    torch.testing.assert_close(beside, alone)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("kind", sorted(set(CUBINGS) - {"optimal"}))
def test_memory_grows_with_the_frames(kind):
    """Not with their square: four times the frames, four times the largest tensor."""
    sizes, cubing = [], make(kind=kind).eval()
    for count in (2500, 10_000):
        with LargestTensor() as largest, torch.no_grad():
            cubing(features(count), [count], [True])
        sizes.append(largest.numel)
    assert sizes[1] <= 4.1 * sizes[0]
