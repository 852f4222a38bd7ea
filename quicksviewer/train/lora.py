"""LoRA by part of the model: named parts get adapters in place of their own weights, the others learn as
their stage says. LoRA: arXiv 2106.09685; over quantised weights (`--bits`), QLoRA: arXiv 2305.14314."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.stages import trainable_prefixes
from quicksviewer.utils.modules import train_only
from quicksviewer.utils.registry import did_you_mean, lookup

BITS = (4, 8, 16)
UNADAPTED = ("lm_head",)
"""Layers without adapters: the loss reads this one's weight, which may be tied to the embedding."""


def check_lora(model_args) -> None:
    """ValueError for LoRA flags that contradict each other or name parts that do not exist."""
    bits, parts = model_args.bits, names_of(model_args.lora_parts)
    if bits not in BITS:
        raise ValueError(f"--bits must be one of {', '.join(map(str, BITS))}, got {bits}")
    if not model_args.lora_enable:
        if bits < 16:
            raise ValueError(f"--bits {bits} needs --lora_enable True: quantised weights cannot learn")
        if model_args.lora_targets:
            raise ValueError("--lora_targets needs --lora_enable True")
        return
    if not parts:
        raise ValueError(f"--lora_parts names no part; the parts are {', '.join(PARTS)}")
    for part in parts:
        lookup(PARTS, part, "part of the model (--lora_parts)")
    if bits < 16 and "llm" not in parts:
        raise ValueError(f"--bits {bits} quantises the language model: name llm in --lora_parts")
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if bits < 16 and is_deepspeed_zero3_enabled():
        raise ValueError(f"--bits {bits} needs whole weights on every rank: use ZeRO-2, not ZeRO-3")


def names_of(text: str | None) -> tuple[str, ...]:
    """The names of a list that is written with commas."""
    return tuple(name for word in (text or "").split(",") if (name := word.strip()))


def lora_targets(model, parts: Sequence[str] = ("llm",), patterns: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers of some parts, of those that match a pattern if there are any.

    A pattern is the end of a name (`q_proj`, `self_attn.q_proj`) or, with *, ? or [, a glob over the whole
    name. ValueError for a part without linear layers and for a pattern without a match.
    """
    layers = [name for part in parts for name in _linear_layers(model, part)]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in layers):
            ends = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(
                f"--lora_targets: {pattern!r} matches none of the {len(layers)} linear layers of "
                f"{', '.join(parts)}.{did_you_mean(pattern, ends)} Their names end in {', '.join(ends)}; "
                f"one is {layers[0]}"
            )
    return [name for name in layers if not patterns or any(_matches(name, p) for p in patterns)]


def _linear_layers(model, part: str) -> list[str]:
    inside = tuple(f"{prefix}." for prefix in PARTS[part])
    names = [
        name
        for name, module in model.named_modules()
        if f"{name}.".startswith(inside) and isinstance(module, nn.Linear) and name not in UNADAPTED
    ]
    if not names:
        raise ValueError(f"--lora_parts: {part} has no linear layer that LoRA could adapt in this model")
    return names


def _matches(name: str, pattern: str) -> bool:
    if set(pattern) & set("*?["):
        return fnmatchcase(name, pattern)
    return f".{name}".endswith(f".{pattern}")


def add_lora(model, args, stage: str, one_dtype: bool = False):
    """The model with adapters on the parts of `args.lora_parts`, and the stage's other parts trainable beside
    them. `one_dtype`: adapters have that of their layers (DeepSpeed shards no two kinds together, and keeps
    float32 copies of its own); otherwise float32."""
    from peft import LoraConfig, get_peft_model

    parts = names_of(args.lora_parts)
    adapted = tuple(prefix for part in parts for prefix in PARTS[part])
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        target_modules=lora_targets(model, parts, names_of(args.lora_targets)),
        task_type=None,
    )
    beside = tuple(prefix for prefix in trainable_prefixes(model, stage) if prefix not in adapted)
    train_only(model, beside)
    peft = get_peft_model(model, config, autocast_adapter_dtype=not one_dtype)
    learning, with_adapters = (tuple(f"{prefix}." for prefix in group) for group in (beside, adapted))
    for name, parameter in peft.named_parameters():
        plain = name.removeprefix("base_model.model.")
        if plain.startswith(learning):
            parameter.requires_grad_(True)
        elif not plain.startswith(with_adapters):  # --lora_bias all would train the biases of frozen parts
            parameter.requires_grad_(False)
    return peft
