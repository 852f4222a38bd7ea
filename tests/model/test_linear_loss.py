"""The loss without logits equals the loss with them: value, gradients, and what the model makes of it."""

import pytest
import torch
import torch.nn.functional as F
from tiny_world import BACKBONES, fresh, text_row, video_row, videos

from quicksviewer.model.linear_loss import LossHead, linear_cross_entropy, token_losses
from quicksviewer.utils.batching import batch_rows, join_media


def problem(dtype=torch.float32, tokens=37, vocabulary=101, width=16, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    hidden = (torch.randn(tokens, width, generator=generator) * scale).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[::5] = -100
    return hidden, weight, labels, torch.rand(tokens, generator=generator)


def oracle(hidden, weight, labels, weights=None):
    """Value and gradients from full logits in float64."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    losses = F.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=-100)
    total = (losses if weights is None else losses * weights).sum()
    return total, *torch.autograd.grad(total, [hidden, weight])


@pytest.mark.parametrize("chunk", [1, 7, 37, 1000, None])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["usual", "large logits"])
def test_value_and_gradients_are_those_of_full_logits(chunk, weighted, scale):
    hidden, weight, labels, weights = problem(scale=scale)
    weights = weights if weighted else None
    total = linear_cross_entropy(hidden, weight, labels, chunk=chunk, weights_T=weights)
    expected, d_hidden, d_weight = oracle(hidden, weight, labels, weights)
    (total / 7).backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for found, wanted in ((hidden.grad, d_hidden / 7), (weight.grad, d_weight / 7)):
        assert (found - wanted).norm() <= 1e-6 * wanted.norm()
        assert found.dtype == torch.float32


def test_it_is_at_least_as_near_to_float64_as_full_logits_are():
    hidden, weight, labels, _ = problem(tokens=300, vocabulary=5000, width=64)
    expected, d_hidden, d_weight = oracle(hidden, weight, labels)
    total = linear_cross_entropy(hidden, weight, labels, chunk=64)
    ours = [total, *torch.autograd.grad(total, [hidden, weight])]
    usual = F.cross_entropy(hidden @ weight.T, labels, reduction="sum", ignore_index=-100)
    theirs = [usual, *torch.autograd.grad(usual, [hidden, weight])]
    for one, other, exact in zip(ours, theirs, (expected, d_hidden, d_weight), strict=True):
        assert (one - exact).norm() <= 1.5 * (other - exact).norm() + 1e-7 * exact.norm()


def test_bfloat16_rounds_no_more_than_full_logits_do():
    hidden, weight, labels, _ = problem(torch.bfloat16, tokens=200, vocabulary=1000, width=64)
    _, d_hidden, d_weight = oracle(hidden, weight, labels)
    linear_cross_entropy(hidden, weight, labels, chunk=16).backward()
    ours = [hidden.grad, weight.grad]
    usual = F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum", ignore_index=-100)
    theirs = torch.autograd.grad(usual, [hidden, weight])
    for one, other, exact in zip(ours, theirs, (d_hidden, d_weight), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - exact).norm() <= 1.1 * (other - exact).norm()


def test_every_run_gives_the_same_bits():
    def run():
        hidden, weight, labels, weights = problem()
        linear_cross_entropy(hidden, weight, labels, chunk=5, weights_T=weights).backward()
        return hidden.grad, weight.grad

    for one, two in zip(run(), run(), strict=True):
        assert torch.equal(one, two)


def test_losses_of_single_tokens_stand_at_their_places():
    hidden, weight, labels, weights = problem()
    total, losses = token_losses(hidden, weight, labels, weights_T=weights)
    wanted = F.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=-100)
    torch.testing.assert_close(losses, wanted.detach())
    assert not losses.requires_grad and total.item() == pytest.approx((wanted * weights).sum().item())


def test_frozen_inputs_get_no_gradient_and_no_work():
    hidden, weight, labels, _ = problem()
    linear_cross_entropy(hidden, weight.detach(), labels).backward()
    assert hidden.grad is not None
    hidden, weight, labels, _ = problem()
    linear_cross_entropy(hidden.detach(), weight, labels).backward()
    assert weight.grad is not None
    assert not linear_cross_entropy(hidden.detach(), weight.detach(), labels).requires_grad


def test_without_targets_it_is_zero_with_a_graph():
    hidden, weight, labels, _ = problem()
    total = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    total.backward()
    assert total.item() == 0 and not hidden.grad.any() and not weight.grad.any()


def test_no_tensor_of_tokens_times_vocabulary_is_made():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t))
            return out

    hidden, weight, labels, _ = problem(tokens=512, vocabulary=4096, width=8)
    with Watch():
        linear_cross_entropy(hidden, weight, labels, chunk=16).backward()
    assert max(sizes) == 16 * 4096


def test_under_autocast_it_is_the_loss_under_autocast():
    hidden, weight, labels, _ = problem(tokens=64, width=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, labels)
        usual = F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum", ignore_index=-100)
    found = torch.autograd.grad(ours, [hidden, weight])
    wanted = torch.autograd.grad(usual, [hidden, weight])
    assert ours.item() == pytest.approx(usual.item(), rel=1e-4)
    for one, two in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32 and (one - two).norm() <= 1e-2 * two.norm()


def test_what_does_not_fit_is_refused():
    hidden, weight, labels, _ = problem()
    with pytest.raises(ValueError, match=r"\(37, 16\).*\(101, 16\).*\(36,\)"):
        linear_cross_entropy(hidden, weight, labels[1:])
    with pytest.raises(ValueError, match="at least 1 token"):
        linear_cross_entropy(hidden, weight, labels, chunk=0)
    total = linear_cross_entropy(hidden, weight, labels)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        total.backward()


# In the model


@pytest.fixture(params=BACKBONES)
def loaded(request, tiny):
    return fresh(tiny, request.param)


def batch_of(loaded, tiny) -> dict:
    rows = [
        video_row(loaded, videos(tiny)[0]),
        text_row(loaded),
        video_row(loaded, videos(tiny)[1], "Which?"),
    ]
    return batch_rows(rows, loaded.processor.pad_id) | join_media(rows)


def gradients(model, batch, **kwargs):
    model.zero_grad()
    out = model(**batch, **kwargs)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [None, 17])
def test_the_model_trains_as_with_logits(loaded, tiny, count):
    model, batch = loaded.model.train(), batch_of(loaded, tiny)
    count = {} if count is None else {"num_items_in_batch": torch.tensor(count)}
    ours, found = gradients(model, batch, **count)
    model.linear_loss = False
    usual, wanted = gradients(model, batch, **count)
    assert ours.logits is None and usual.logits is not None and usual.token_losses is None
    assert ours.loss.item() == pytest.approx(usual.loss.item(), rel=1e-6)
    assert found.keys() == wanted.keys()
    size = max(grad.norm() for grad in wanted.values())
    for name in found:
        assert (found[name] - wanted[name]).norm() <= 1e-5 * wanted[name].norm() + 1e-7 * size, name


def test_token_losses_of_the_model_are_those_of_its_logits(loaded, tiny):
    model, batch = loaded.model.train(), batch_of(loaded, tiny)
    ours = model(**batch)
    model.linear_loss = False
    logits = model(**batch).logits[:, :-1].transpose(1, 2)
    wanted = F.cross_entropy(logits, batch["labels"][:, 1:], reduction="none", ignore_index=-100)
    torch.testing.assert_close(ours.token_losses[:, :-1], wanted.detach())
    assert not ours.token_losses[:, -1].any()


def test_weights_stand_at_their_labels(loaded, tiny):
    model, batch = loaded.model.train(), batch_of(loaded, tiny)
    weights = torch.rand(batch["labels"].shape)
    out = model(**batch, loss_weights=weights)
    learned = batch["labels"][:, 1:] != -100
    wanted = (out.token_losses[:, :-1] * weights[:, 1:] * learned).sum() / (weights[:, 1:] * learned).sum()
    assert out.loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_evaluation_gives_logits_as_before(loaded, tiny):
    model, batch = loaded.model.eval(), batch_of(loaded, tiny)
    with torch.no_grad():
        out = model(**batch)
    assert out.logits.shape[:2] == batch["labels"].shape and out.loss is not None
    with pytest.raises(ValueError, match="loss_weights"):
        model(**batch, loss_weights=torch.ones(batch["labels"].shape))


def test_the_head_is_the_layer_it_was(loaded):
    head = loaded.model.lm_head
    assert isinstance(head, LossHead) and set(head.state_dict()) == {"weight"}
    hidden = torch.randn(3, head.in_features)
    assert torch.equal(head(hidden), F.linear(hidden, head.weight))
