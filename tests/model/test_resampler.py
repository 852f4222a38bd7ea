"""Resamplers: one ragged attention equals a loop of nn.MultiheadAttention over cubes."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quicksviewer.model.config import ResamplerConfig
from quicksviewer.model.multimodal_resampler import RESAMPLERS, build_resampler, reading
from quicksviewer.model.multimodal_resampler.positions import axis_widths, sin_cos

TOWER = SimpleNamespace(hidden_size=12, num_patches=16)
CUBE_OF_FRAME = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4])
TIMES = torch.tensor([0.5, 1.5, 2.5, 3.5, 0.0, 2.0, 0.0, 7.0, 8.0, 9.0, 1000.0])


def make(kind="perceiver", lm_width=64, **values):
    torch.manual_seed(0)
    values = {"queries": 4, "head_width": 32, **values}
    resampler = build_resampler(ResamplerConfig(kind=kind, **values), TOWER, lm_width)
    for name, parameter in resampler.named_parameters():
        nn.init.normal_(parameter, mean=float(name.startswith("ln_") and name.endswith("weight")), std=0.3)
    return resampler


def tokens(num_frames=11):
    return torch.randn(num_frames, 16, 12, generator=torch.Generator().manual_seed(1))


def naive(resampler, tokens_NPD):
    """Cube by cube, with all keys side by side and a dense table of positions."""
    width, heads = resampler.out_width, resampler.attn.num_heads
    attention = nn.MultiheadAttention(width, heads, batch_first=True)
    attention.load_state_dict(resampler.attn.state_dict())
    attention.requires_grad_(True)
    widths, norm = axis_widths(width), resampler.ln_kv
    axis = sin_cos(torch.arange(4), widths[1])
    row, column = (t.flatten(0, 1) for t in (axis[:, None].expand(4, 4, -1), axis[None].expand(4, 4, -1)))
    out = []
    for cube in range(5):
        member = cube == CUBE_OF_FRAME
        value = F.layer_norm(resampler.kv_proj(tokens_NPD[member]), (width,), norm.weight, norm.bias, 1e-6)
        value = value.flatten(0, 1)
        time = sin_cos(TIMES[member], widths[0]).repeat_interleave(16, dim=0)
        plane = torch.cat([row, column], dim=1).repeat(int(member.sum()), 1)
        key = value + torch.cat([time, plane], dim=1)
        out.append(attention(resampler.ln_q(resampler.query)[None], key[None], value[None])[0][0])
    return resampler.ln_post(torch.stack(out)) @ resampler.proj, attention


def test_ragged_attention_equals_the_loop():
    resampler, weight = make(), torch.randn(5, 4, 64)
    one, two = tokens().requires_grad_(), tokens().requires_grad_()
    ours = resampler(one, CUBE_OF_FRAME, 5, TIMES)
    (ours * weight).sum().backward()
    grads = {name: p.grad.clone() for name, p in resampler.named_parameters()}
    resampler.zero_grad()
    theirs, attention = naive(resampler, two)
    (theirs * weight).sum().backward()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.grad, two.grad, atol=1e-4, rtol=1e-4)
    expected = {name: p.grad for name, p in resampler.named_parameters() if p.grad is not None}
    expected |= {f"attn.{name}": p.grad for name, p in attention.named_parameters()}
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, expected[name], atol=2e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_shares_are_a_bias_of_attention():
    """A frame's keys stand in its own cube and in its neighbours', with log(share) added to their scores."""
    resampler, weight = make(), torch.randn(5, 4, 64)
    share = torch.rand(11, 3, generator=torch.Generator().manual_seed(3)) + 0.05
    share[:3, 0], share[7:, 2] = 0.0, 0.0  # no cube before the first, none after the last
    inputs = [tokens().requires_grad_(), share.clone().requires_grad_()]
    (resampler(inputs[0], CUBE_OF_FRAME, 5, TIMES, inputs[1]) * weight).sum().backward()
    ours = [x.grad.clone() for x in inputs] + [p.grad.clone() for p in resampler.parameters()]

    resampler.zero_grad()
    x, bias = tokens().requires_grad_(), share.clone().requires_grad_()
    kv = F.layer_norm(
        resampler.kv_proj(x), (64,), resampler.ln_kv.weight, resampler.ln_kv.bias, 1e-6
    ).flatten(0, 1)
    widths, axis = axis_widths(64), sin_cos(torch.arange(4), axis_widths(64)[1])
    row, column = (t.flatten(0, 1) for t in (axis[:, None].expand(4, 4, -1), axis[None].expand(4, 4, -1)))
    plane = torch.cat([row, column], dim=1).repeat(11, 1)
    key = kv + torch.cat([sin_cos(TIMES, widths[0]).repeat_interleave(16, dim=0), plane], dim=1)
    step = torch.arange(5)[:, None] - CUBE_OF_FRAME + 1
    near = (step >= 0) & (step <= 2)
    log_CN = bias[torch.arange(11), step.clamp(0, 2)].log().masked_fill(~near, -torch.inf)
    query, keys, values = (
        t.unflatten(1, (2, 32)).transpose(0, 1)
        for t in (
            F.linear(part, w, b)
            for part, w, b in zip(
                (resampler.ln_q(resampler.query), key, kv),
                resampler.attn.in_proj_weight.chunk(3),
                resampler.attn.in_proj_bias.chunk(3),
                strict=True,
            )
        )
    )
    mask = log_CN.repeat_interleave(16, dim=1)[:, None, None]
    read = F.scaled_dot_product_attention(query[None].expand(5, -1, -1, -1), keys[None], values[None], mask)
    out = resampler.ln_post(resampler.attn.out_proj(read.transpose(1, 2).flatten(2))) @ resampler.proj
    (out * weight).sum().backward()
    theirs = [x.grad, bias.grad.nan_to_num(), *(p.grad for p in resampler.parameters())]
    has = share > 0
    ours[1], theirs[1] = ours[1][has], theirs[1][has]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=3e-4, rtol=1e-3)


def test_the_derivative_of_no_share_is_that_of_a_small_one():
    resampler, weight = make(), torch.randn(5, 4, 64)
    with torch.no_grad():
        resampler.attn.in_proj_weight[64:128] *= 0.1  # keys: scores near each other
    hard = torch.tensor([0.0, 1.0, 0.0]).repeat(11, 1).requires_grad_()
    (resampler(tokens(), CUBE_OF_FRAME, 5, TIMES, hard) * weight).sum().backward()
    more = hard.detach().clone()
    more[4, 2] += 1e-3  # frame 4 in the cube after its own
    with torch.no_grad():
        values = [
            (resampler(tokens(), CUBE_OF_FRAME, 5, TIMES, share) * weight).double().sum()
            for share in (hard, more)
        ]
    assert float(hard.grad[4, 2]) == pytest.approx(float(values[1] - values[0]) / 1e-3, rel=0.05)


def test_chunks_change_nothing(monkeypatch):
    resampler, count = make(), 23
    cube = torch.arange(count) // 5
    args = cube, int(cube[-1]) + 1, torch.arange(count).float()

    def run():
        frames = tokens(count).requires_grad_()
        resampler.zero_grad()
        out = resampler(frames, *args)
        out.square().sum().backward()
        return [out.detach(), frames.grad, *(p.grad.clone() for p in resampler.parameters())]

    whole = run()
    monkeypatch.setitem(reading.CHUNK_BYTES, "cpu", 1)
    assert len(reading.chunks_of(tokens(count), 8)) == count
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_far_scores_neither_overflow_nor_vanish():
    resampler = make()
    with torch.no_grad():
        resampler.query.mul_(0).add_(torch.randn(4, 64) * 10)
        resampler.attn.in_proj_weight.mul_(30)
    assert resampler(tokens(), CUBE_OF_FRAME, 5, TIMES).isfinite().all()


def test_bfloat16_stays_near_float32():
    resampler = make()
    high = resampler(tokens(), CUBE_OF_FRAME, 5, TIMES)
    with torch.autocast("cpu", torch.bfloat16):
        auto = resampler(tokens(), CUBE_OF_FRAME, 5, TIMES)
    low = resampler.bfloat16()(tokens().bfloat16(), CUBE_OF_FRAME, 5, TIMES)
    assert low.dtype == torch.bfloat16
    for other in (auto, low):
        assert (other - high).float().norm() < 0.05 * high.norm()


@pytest.mark.parametrize("kind", sorted(RESAMPLERS))
def test_a_resampler_gives_what_it_announces(kind):
    resampler, one = make(kind), tokens().requires_grad_()
    out = resampler(one, CUBE_OF_FRAME, 5, TIMES)
    assert out.shape == (5, resampler.num_tokens, resampler.out_width)
    out.square().sum().backward()
    assert (one.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert all(p.grad is not None for p in resampler.parameters())


def test_pooling_is_the_mean_over_frames_and_neighbours():
    mean = torch.stack([tokens()[c == CUBE_OF_FRAME].mean(0) for c in range(5)])
    torch.testing.assert_close(make("identity")(tokens(), CUBE_OF_FRAME, 5, TIMES), mean)
    blocks = mean.view(5, 2, 2, 2, 2, 12).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(make("spatial_pool")(tokens(), CUBE_OF_FRAME, 5, TIMES), blocks)


@pytest.mark.parametrize("width", [64, 72, 128, 192, 256, 896, 3584, 4096])
def test_channels_of_the_axes(width):
    time, row, column = axis_widths(width)
    assert time + row + column == width and row == column and time % 2 == row % 2 == 0
    if width % 16 == 0:
        assert (time, row) == (width * 2 // 8, width * 3 // 8)


def test_time_in_fractions_of_a_second():
    table = sin_cos(torch.tensor([0.0, 0.5]), 4)
    expected = [
        [0, 0, 1, 1],
        [*torch.tensor([0.5, 0.005]).sin().tolist(), *torch.tensor([0.5, 0.005]).cos().tolist()],
    ]
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float32))


def test_order_in_time_matters():
    resampler, zero = make(), torch.zeros(2, dtype=torch.long)
    there = resampler(tokens(2), zero, 1, torch.tensor([0.0, 9.0]))
    back = resampler(tokens(2), zero, 1, torch.tensor([9.0, 0.0]))
    assert (there - back).abs().max() > 1e-3


def test_published_queries_start_equal_and_ours_do_not():
    torch.manual_seed(0)
    old = build_resampler(ResamplerConfig(queries=4, query_init_std=0.0), TOWER, 64)
    new = build_resampler(ResamplerConfig(queries=4), TOWER, 64)
    assert not old.query.any() and new.query.std() > 0.01


@pytest.mark.parametrize(
    "values, width, message",
    [
        ({"head_width": 100}, 320, "heads do not divide"),
        ({}, 63, "even width"),
        ({"kind": "spatial_pool", "queries": 25}, 64, "cannot pool"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values, width, message):
    with pytest.raises(ValueError, match=message):
        make(lm_width=width, **values)


def test_size_at_the_published_widths():
    with torch.device("meta"):
        resampler = build_resampler(
            ResamplerConfig(), SimpleNamespace(hidden_size=1152, num_patches=576), 3584
        )
    assert sum(p.numel() for p in resampler.parameters()) == 68_619_264
    assert resampler.attn.num_heads == 28 and not list(resampler.buffers())
