"""LoRA on the language model; vision modules learn as their stage says."""

from torch import nn

from quicksviewer.train.stages import trainable_prefixes
from quicksviewer.utils.modules import train_only


def lora_targets(model, part: str = "model") -> list[str]:
    """Full names of all linear layers under a dotted prefix. ValueError where there is none."""
    layers = [
        name
        for name, module in model.named_modules()
        if name.startswith(part + ".") and isinstance(module, nn.Linear)
    ]
    if not layers:
        raise ValueError(f"no linear layer lies under {part!r}: nothing for LoRA to adapt")
    return layers


def add_lora(model, args, stage: str):
    """The model with adapters on its language model, and the stage's other parts trainable beside them."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        target_modules=lora_targets(model),
        task_type=None,
    )
    beside = tuple(p for p in trainable_prefixes(model, stage) if p not in ("model", "lm_head"))
    train_only(model, beside)
    peft = get_peft_model(model, config)
    for name, parameter in peft.named_parameters():
        plain = name.removeprefix("base_model.model.")
        if plain.startswith(tuple(f"{prefix}." for prefix in beside)):
            parameter.requires_grad_(True)
    return peft
