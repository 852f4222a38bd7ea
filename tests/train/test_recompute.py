"""Parts that recompute: the same loss and gradients, and really a second forward pass."""

from types import SimpleNamespace

import pytest
import torch
from tiny_world import fresh, video_row, videos

from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.train.recompute import check_recompute, recompute_parts, recomputed_layers

CHOICES = [(), ("llm",), ("vision_tower",), ("llm", "vision_tower")]


def count_mlps(model) -> dict[str, int]:
    """Calls of the feed-forward blocks of both transformers; they lie inside what is recomputed."""
    calls = {"llm": 0, "vision_tower": 0}

    def note(part):
        def hook(module, args):
            calls[part] += 1

        return hook

    for part in calls:
        for layer in recomputed_layers(model, part):
            layer.mlp.register_forward_pre_hook(note(part))
    return calls


def step(tiny, parts):
    """Loss, gradients and calls of one step of all weights."""
    loaded = fresh(tiny)
    model = loaded.model.train()
    batch = DataCollatorForSupervisedDataset(loaded.processor.pad_id)([video_row(loaded, videos(tiny)[0])])
    recompute_parts(model, parts)
    calls = count_mlps(model)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, calls


@pytest.mark.parametrize("parts", CHOICES[1:])
def test_the_step_is_the_same_and_chosen_parts_run_twice(tiny, parts):
    loss, grads, calls = step(tiny, ())
    again, grads_again, calls_again = step(tiny, parts)
    assert torch.equal(loss, again)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads if grads[name] is not None)
    assert {name for name, grad in grads.items() if grad is None} == {
        name for name, grad in grads_again.items() if grad is None
    }
    assert min(calls.values()) > 0
    assert calls_again == {part: count * (1 + (part in parts)) for part, count in calls.items()}


def test_parts_without_layers_and_contradictions_are_refused(tiny, caplog):
    model = fresh(tiny).model
    with pytest.raises(ValueError, match="projector has no layers to recompute; .*: vision_tower, llm"):
        recompute_parts(model, ("projector",))
    with pytest.raises(ValueError, match="unknown part .*Did you mean 'llm'"):
        check_recompute(SimpleNamespace(checkpoint_parts="lm", activation_checkpointing=False))
    with pytest.raises(ValueError, match="give it or --checkpoint_parts"):
        check_recompute(SimpleNamespace(checkpoint_parts="llm", activation_checkpointing=True))
    model.vision_tower.requires_grad_(False)
    recompute_parts(model, ("vision_tower",))
    assert "frozen" in caplog.text
