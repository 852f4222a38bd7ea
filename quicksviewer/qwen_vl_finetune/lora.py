"""LoRA on Qwen2.5-VL by part: which linear layers get adapters, and adapters saved, loaded and merged.

    model = attach(model, LoraSettings(targets={"vit": ("*.blocks.7.*",), "lm": ("q_proj", "v_proj")}))

LoRA: arXiv 2106.09685; over 4-bit weights, QLoRA: arXiv 2305.14314.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from quicksviewer.qwen_vl_finetune.load import LOADER, Loaded, base_of, load
from quicksviewer.utils.modules import quantised_modules
from quicksviewer.utils.registry import did_you_mean, load_target, lookup

PARTS = {
    "vit": "model.visual.blocks",
    "merger": "model.visual.merger",
    "lm": "model.language_model.layers",
}
"""Part -> the module that its linear layers lie in. lm_head is in none: the loss reads its weight."""
BIASES = ("none", "lora_only", "all")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters: their size, and the layers that get one."""

    r: int = 16
    alpha: int = 16
    dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    seed: int = 3407
    """Of the adapters' random start."""
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"vit": (), "lm": ()})
    """Part -> patterns of names; no pattern means all linear layers of the part. By default both towers, as
    unsloth has it: 51,521,536 numbers of a 7B model."""
    task_type: str | None = None

    def __post_init__(self):
        if self.r < 1 or self.alpha <= 0:
            raise ValueError(f"r and alpha must be positive, got r={self.r}, alpha={self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.bias not in BIASES:
            raise ValueError(f"bias must be one of {', '.join(BIASES)}, got {self.bias!r}")
        if not self.targets:
            raise ValueError(f"targets names no part; the parts are {', '.join(PARTS)}")
        for part in self.targets:
            lookup(PARTS, part, "part of the model")


def find_targets(model: nn.Module, targets: Mapping[str, Sequence[str]]) -> list[str]:
    """Full names of the linear layers of some parts, each of those that match a pattern if it has patterns.

    A pattern is the end of a name (`q_proj`, `mlp.0`) or, with *, ? or [, a glob over the whole name.
    ValueError for a part without linear layers and for a pattern without a match.
    """
    names = []
    for part, patterns in targets.items():
        layers = _linear_layers(model, part)
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in layers):
                ends = sorted({name.rpartition(".")[2] for name in layers})
                raise ValueError(
                    f"LoRA on {part}: {pattern!r} matches none of its {len(layers)} linear layers."
                    f"{did_you_mean(pattern, ends)} Their names end in {', '.join(ends)}; one is {layers[0]}"
                )
        names += [name for name in layers if not patterns or any(_matches(name, p) for p in patterns)]
    return names


def _linear_layers(model: nn.Module, part: str) -> list[str]:
    inside = f"{lookup(PARTS, part, 'part of the model')}."
    named = model.named_modules()
    names = [name for name, module in named if name.startswith(inside) and isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"LoRA on {part}: {type(model).__name__} has no linear layer under {inside[:-1]}")
    return names


def _matches(name: str, pattern: str) -> bool:
    if set(pattern) & set("*?["):
        return fnmatchcase(name, pattern)
    return f".{name}".endswith(f".{pattern}")


def attach(model: nn.Module, settings: LoraSettings | None = None):
    """The model with fresh adapters, which change nothing yet and are all that learns: a PeftModel.

    Also over 4-bit and 8-bit weights. ValueError where a target matches nothing or the model has adapters.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    settings = settings or LoraSettings()
    if isinstance(model, PeftModel):
        raise ValueError("the model has adapters already: load the base again for fresh ones")
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias=settings.bias,
        use_rslora=settings.use_rslora,
        target_modules=find_targets(model, settings.targets),
        task_type=settings.task_type,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return get_peft_model(model, config)


def silent_adapters(model: nn.Module) -> list[str]:
    """Adapter weights that learn and have no gradient. After one backward pass there must be none."""
    named = model.named_parameters()
    return [name for name, p in named if "lora_" in name and p.requires_grad and p.grad is None]


# --- saved and loaded


def load_with_adapter(
    folder: str | os.PathLike, base: str | None = None, is_trainable: bool = False, **options
) -> Loaded:
    """The base model of an adapter folder with its adapter, in eval mode. `base`: in place of the one that
    the folder names. `options`: those of `load`."""
    loaded = load(base or base_of(folder), **options)
    model = add_saved(loaded.model, folder, is_trainable)
    return Loaded(model.eval(), loaded.processor, loaded.bits, loaded.statement)


def add_saved(model: nn.Module, folder: str | os.PathLike, is_trainable: bool = False):
    """The model with the adapter of a folder. ValueError where its weights are not those of the adapter."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    base_of(folder)
    wrapped = PeftModel.from_pretrained(
        model, os.fspath(folder), is_trainable=is_trainable, use_safetensors=True
    )
    with safe_open(os.path.join(folder, "adapter_model.safetensors"), "pt") as file:
        stored = set(file.keys())
    if strange := sorted(stored ^ set(get_peft_model_state_dict(wrapped))):
        raise ValueError(
            f"{folder} does not fit the model: {len(strange)} weights differ, such as {strange[:3]}"
        )
    return wrapped


def merged(model: Any, base: str | os.PathLike | None = None, dtype: Any = "auto") -> nn.Module:
    """A new model with the adapters added to the weights; the given one stays as it is.

    Made from the base's files with all bits (`base`, or where the model came from), on the CPU. Over 4-bit
    weights the sum is thus not rounded again; it differs from the model in training by what 4 bits lose.
    ValueError where the base is only there in 4 bits.
    """
    from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if not isinstance(model, PeftModel):
        raise ValueError(f"{type(model).__name__} has no adapters to merge")
    name = os.fspath(base or model.get_base_model().name_or_path)
    fresh = load_target(LOADER)(
        name, task="conditional_generation", device="cpu", load_processor=False, dtype=dtype
    )["model"]
    if quantised_modules(fresh):
        raise ValueError(f"{name} is stored quantised; give `base`, the same model with all its bits")
    again = get_peft_model(fresh, model.peft_config["default"])
    set_peft_model_state_dict(again, get_peft_model_state_dict(model))
    return again.merge_and_unload(safe_merge=True).eval()
