"""Activations of chosen parts are computed again in the backward pass and not kept (`--checkpoint_parts`).

The layers are those that transformers' `--gradient_checkpointing` switches, which means all parts that have
any. Here a part decides for itself: a long language model may recompute while a frozen tower keeps nothing
anyway.
"""

from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.lora import names_of
from quicksviewer.utils.registry import lookup
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)


def check_recompute(training) -> None:
    """ValueError for parts that do not exist, and for both ways to say the same."""
    parts = names_of(training.checkpoint_parts)
    for part in parts:
        lookup(PARTS, part, "part of the model (--checkpoint_parts)")
    if parts and training.activation_checkpointing:
        raise ValueError("--gradient_checkpointing recomputes all parts: give it or --checkpoint_parts")


def recomputed_layers(model, part: str) -> list[GradientCheckpointingLayer]:
    """The layers of a part that can be recomputed. ValueError where it has none."""
    if layers := _layers(model, part):
        return layers
    able = ", ".join(p for p in PARTS if _layers(model, p))
    raise ValueError(f"--checkpoint_parts: {part} has no layers to recompute; those that have: {able}")


def _layers(model, part: str) -> list[GradientCheckpointingLayer]:
    tops = [getattr(model, prefix) for prefix in PARTS[part] if hasattr(model, prefix)]
    return [m for top in tops for m in top.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute_parts(model, parts: tuple[str, ...]) -> None:
    """Let the layers of these parts recompute. ValueError for a part without such layers; a warning for one
    through which no gradient passes, which keeps no activations to begin with."""
    for part in parts:
        if part == "vision_tower" and not any(p.requires_grad for p in model.vision_tower.parameters()):
            logger.warning("--checkpoint_parts: the vision tower is frozen and keeps no activations")
        for layer in recomputed_layers(model, part):
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = True
