"""Optimizer groups: every part of the model at its own rate, decay for matrices only."""

from torch import nn


def param_groups(
    model: nn.Module, rate: float, decay: float, rate_of: dict[str, float], parts: dict[str, tuple[str, ...]]
) -> list[dict]:
    """One group per (part, decay or not) of what is trained. `rate_of`: part -> its own learning rate.

    Vectors (biases, norms) are not decayed. Groups carry their part's name, so that rates can be logged by
    it.
    """
    groups: dict[tuple[str, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = decay if _ndim(parameter) > 1 else 0.0
            groups.setdefault((part_of(name, parts), own), []).append(parameter)
    return [
        {"params": parameters, "lr": rate_of.get(part, rate), "weight_decay": own, "part": part}
        for (part, own), parameters in groups.items()
    ]


def part_of(name: str, parts: dict[str, tuple[str, ...]]) -> str:
    """The part of the model that a parameter belongs to, by the dotted prefix of its name; PEFT's wrapping
    aside."""
    name = name.removeprefix("base_model.model.")
    for part, prefixes in parts.items():
        if any(name.startswith(prefix + ".") for prefix in prefixes):
            return part
    raise ValueError(f"parameter {name} belongs to no part of the model")


def _ndim(parameter) -> int:
    """Dimensions of a parameter, also when ZeRO-3 holds a flat shard of it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
