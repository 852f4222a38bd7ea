"""Experts as grouped products are the loop over experts, with all gradients; the routers' losses have the
values that they are defined by."""

import math

import pytest
import torch
import torch.nn.functional as F

from quicksviewer.minimind import MiniMindForCausalLM, llmconfig, preset
from quicksviewer.minimind.moe import (
    Experts,
    MixtureOfExperts,
    Router,
    Routing,
    Sequences,
    router_loss,
    sum_by_sequence,
)

E, K, ALPHA = 4, 2, 0.01


def config(**changes):
    moe = dict(use_moe=True, n_routed_experts=E, num_experts_per_token=K, aux_loss_alpha=ALPHA)
    return preset("debug", llmconfig, **moe | changes)


# --- experts ---


def naive(experts: Experts, x, weights, chosen):
    """One token and one of its experts after the other."""
    rows = []
    for token, its_weights, its_experts in zip(x, weights, chosen, strict=True):
        row = torch.zeros_like(token)
        for weight, expert in zip(its_weights, its_experts.tolist(), strict=True):
            gate, up = (experts.gate_up_proj[expert] @ token).chunk(2)
            row = row + weight * (experts.down_proj[expert] @ (experts.act(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def problem(count: int, chosen=None, dtype=torch.float32, **changes):
    """Experts, tokens (N, D), weights and numbers of their experts (N, K)."""
    torch.manual_seed(0)
    experts = Experts(config(**changes)).to(dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(count, experts.down_proj.shape[1], dtype=dtype, requires_grad=True)
    weights, drawn = torch.rand(count, len(experts.down_proj), dtype=dtype).topk(K, dim=-1)
    chosen = drawn if chosen is None else torch.tensor(chosen).expand(count, K)
    return experts, x, weights.detach().requires_grad_(), chosen


def gradients(out, experts, x, weights):
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return torch.autograd.grad((out * probe).sum(), [x, weights, *experts.parameters()])


def assert_near(one, other) -> None:
    """To 1e-5 of the largest entry."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.detach().abs().max()))


CASES = {
    "many tokens": (40, None, {}),
    "one token": (1, None, {}),
    "two experts for all": (9, [3, 0], {}),
    "widths that no grouped product takes": (11, None, dict(hidden_size=24, intermediate_size=10)),
    "double": (13, None, dict(dtype=torch.float64)),
    "another activation": (13, None, dict(hidden_act="gelu")),
}


@pytest.mark.parametrize("name", CASES)
def test_grouped_experts_are_the_loop(name):
    count, chosen, changes = CASES[name]
    experts, *data = problem(count, chosen, **changes)
    ours, theirs = experts(*data), naive(experts, *data)
    assert_near(ours, theirs)
    found, expected = (gradients(out, experts, *data[:2]) for out in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other)
    if chosen is not None:
        assert (found[2][1:3] == 0).all() and (found[2][[0, 3]] != 0).any(), (
            "idle experts have zero, not None"
        )


def test_gradients_are_those_of_differences():
    experts, x, weights, chosen = problem(
        4,
        dtype=torch.float64,
        hidden_size=8,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=3,
    )
    factors = [x, weights, *experts.parameters()]
    exact = gradients(experts(x, weights, chosen), experts, x, weights)
    probe = torch.randn(4, 8, generator=torch.Generator().manual_seed(5)).double()
    for factor, gradient in zip(factors, exact, strict=True):
        for _ in range(5):
            way, sides = torch.randn_like(factor), []
            for step in (1e-5, -2e-5, 1e-5):  # there, to the other side, and back
                with torch.no_grad():
                    factor += step * way
                    sides.append(float((experts(x, weights, chosen) * probe).sum()))
            assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(float((gradient * way).sum()), rel=1e-6)


def test_a_second_backward_pass_is_refused():
    """The first has used up what was kept; a wrong gradient would be worse."""
    experts, x, weights, chosen = problem(4)
    out = experts(x, weights, chosen).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_gradients_in_pieces_are_the_same(monkeypatch):
    from quicksviewer.minimind import grouped

    experts, *data = problem(40)
    whole = gradients(experts(*data), experts, *data[:2])
    monkeypatch.setitem(grouped.CHUNK_BYTES, "cpu", 7 * 2 * experts.down_proj.shape[-1] * 4)  # seven rows
    for one, other in zip(gradients(experts(*data), experts, *data[:2]), whole, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("needs", [(0,), (1,), (2, 3)])
def test_only_the_gradients_that_are_needed(needs):
    experts, x, weights, chosen = problem(12)
    everything = gradients(experts(x, weights, chosen), experts, x, weights)
    factors = [x, weights, *experts.parameters()]
    for place, factor in enumerate(factors):
        factor.requires_grad_(place in needs)
    out = experts(x, weights, chosen)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    found = torch.autograd.grad((out * probe).sum(), [factors[place] for place in needs])
    for one, place in zip(found, needs, strict=True):
        torch.testing.assert_close(one, everything[place])


def test_half_precision_and_autocast_are_near():
    experts, x, weights, chosen = problem(40)
    exact = experts(x, weights, chosen)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = experts(x, weights, chosen)
    mixed_gradients = gradients(mixed, experts, x, weights)
    assert mixed.dtype == torch.bfloat16 and {g.dtype for g in mixed_gradients} == {torch.float32}
    for rough, value in zip(
        (mixed, *mixed_gradients), (exact, *gradients(exact, experts, x, weights)), strict=True
    ):
        assert F.cosine_similarity(rough.float().flatten(), value.flatten(), dim=0) > 0.999
    half = experts.to(torch.bfloat16)(x.bfloat16(), weights.bfloat16(), chosen)
    assert F.cosine_similarity(half.float().flatten(), exact.flatten(), dim=0) > 0.999


def test_a_mixture_is_its_chosen_and_its_shared_experts():
    torch.manual_seed(0)
    moe = MixtureOfExperts(config(n_shared_experts=2, norm_topk_prob=True))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(3, 5, 64)
    out, routing = moe(x)
    expected = naive(moe.experts, x.flatten(0, 1), routing.weights, routing.experts)
    torch.testing.assert_close(out, expected.view_as(out) + moe.shared_experts(x), rtol=1e-5, atol=1e-5)
    trained, _ = moe.train()(x)
    assert torch.equal(trained, moe.eval()(x)[0])


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("k", [1, 2])
def test_a_router_takes_the_likeliest(k, normalised):
    torch.manual_seed(0)
    router = Router(config(num_experts_per_token=k, norm_topk_prob=normalised))
    torch.nn.init.normal_(router.weight)
    x = torch.randn(20, 64)
    routing, expected = router(x), (x @ router.weight.T).softmax(-1)
    torch.testing.assert_close(routing.probabilities, expected)
    for row, weights, experts in zip(expected, routing.weights, routing.experts, strict=True):
        assert set(experts.tolist()) == set(row.argsort(descending=True)[:k].tolist())
        total = row[experts].sum() if normalised and k > 1 else 1
        torch.testing.assert_close(weights, row[experts] / total)


# --- losses ---


def routing_of(probabilities, k: int = K) -> Routing:
    """What a router says that finds these probabilities (N, E)."""
    weights, experts = probabilities.topk(k, dim=-1)
    return Routing(weights, experts, probabilities, probabilities.new_zeros(len(probabilities)))


def loss_of(routing: Routing, rows: int, **changes) -> float:
    ids = torch.ones(rows, len(routing.weights) // rows, dtype=torch.long)
    sums = sum_by_sequence(routing, Sequences.of(ids, most=1))
    return float(router_loss(sums[None], config(**changes)))


@pytest.mark.parametrize("seq_aux", [True, False])
@pytest.mark.parametrize("k", [1, 2])
def test_uniform_use_costs_alpha(seq_aux, k):
    """Every expert is the likeliest of as many tokens, and the mean probability is the same."""
    turns = torch.stack([torch.tensor([0.4, 0.3, 0.2, 0.1]).roll(i) for i in range(E)]).repeat(4, 1)
    settings = dict(num_experts_per_token=k, seq_aux=seq_aux)
    assert loss_of(routing_of(turns, k), rows=2, **settings) == pytest.approx(ALPHA, rel=1e-5)


@pytest.mark.parametrize("seq_aux", [True, False])
def test_collapse_costs_as_much_as_there_are_experts(seq_aux):
    rest = 1e-6
    collapsed = torch.tensor([[1 - 3 * rest, rest, rest, rest]]).repeat(16, 1)
    found = loss_of(routing_of(collapsed, 1), rows=2, num_experts_per_token=1, seq_aux=seq_aux)
    assert found == pytest.approx(E * ALPHA, rel=1e-4) and found < E * ALPHA


def test_rows_that_are_each_lopsided_cost_only_where_rows_count():
    """Row by row one expert; over the batch all are used alike."""
    one_each = torch.eye(E).repeat_interleave(8, dim=0) * 0.96 + 0.01
    for seq_aux, expected in ((True, ALPHA * E * 0.97), (False, ALPHA)):
        found = loss_of(routing_of(one_each, 1), rows=E, num_experts_per_token=1, seq_aux=seq_aux)
        assert found == pytest.approx(expected, rel=1e-5)


def model_of(**changes) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(config(**changes)).train()


IDS = torch.randint(3, 260, (3, 10), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("changes", "training", "is_zero"),
    [
        ({}, True, False),
        ({}, False, True),
        (dict(aux_loss_alpha=0.0), True, True),
        (dict(use_moe=False), True, True),
        (dict(aux_loss_alpha=0.0, router_z_alpha=1e-3), True, False),
    ],
)
def test_the_loss_of_routers_is_always_a_tensor(changes, training, is_zero):
    out = model_of(**changes).train(training)(IDS)
    assert isinstance(out.aux_loss, torch.Tensor) and out.aux_loss.shape == ()
    assert (float(out.aux_loss.detach()) == 0) == is_zero
    assert out.aux_loss.requires_grad != is_zero


def test_a_model_adds_up_its_layers():
    """Routers that prefer nobody: the probabilities are all 1/E, which is alpha whoever is chosen."""
    model = model_of(num_hidden_layers=3)
    for name, parameter in model.named_parameters():
        if "router" in name:
            torch.nn.init.zeros_(parameter)
    assert float(model(IDS).aux_loss.detach()) == pytest.approx(3 * ALPHA, rel=1e-5)
    for name, parameter in model.named_parameters():
        if "router" in name:
            parameter.data[0] = 100 * torch.sign(torch.randn(64))  # by turns the first expert, and nobody
    assert float(model(IDS).aux_loss.detach()) > 3 * ALPHA


def test_the_size_of_logits_costs_its_square():
    model = model_of(aux_loss_alpha=0.0, router_z_alpha=0.5, num_hidden_layers=1)
    torch.nn.init.zeros_(model.model.layers[0].mlp.router.weight)
    assert float(model(IDS).aux_loss.detach()) == pytest.approx(0.5 * math.log(E) ** 2, rel=1e-5)


def test_padding_counts_for_nothing():
    model = model_of(router_z_alpha=0.1)
    long = torch.cat([IDS, torch.full((3, 4), 2)], dim=1)
    mask = (torch.arange(14) < 10).long().expand(3, 14)
    padded, alone = model(long, attention_mask=mask), model(IDS)
    torch.testing.assert_close(padded.aux_loss, alone.aux_loss)
    assert torch.equal(padded.expert_counts, alone.expert_counts)
    assert alone.expert_counts.sum(dim=1).tolist() == [K * IDS.numel()] * 2


def test_experts_are_counted_outside_of_training_when_asked():
    model = model_of().eval()
    assert model(IDS).expert_counts is None
    counts = model(IDS, output_expert_counts=True).expert_counts
    assert torch.equal(counts, model.train()(IDS).expert_counts)


def test_every_router_and_expert_learns():
    model = model_of(n_shared_experts=1)
    out = model(IDS, labels=IDS)
    (out.loss + out.aux_loss).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
