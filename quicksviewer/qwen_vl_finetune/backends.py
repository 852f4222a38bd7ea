"""Who loads, adapts and merges: transformers with PEFT, or unsloth, behind the same functions.

unsloth needs a GPU to be imported at all; it is looked for when its row is asked for.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicksviewer.qwen_vl_finetune.load import Loaded, load
from quicksviewer.qwen_vl_finetune.lora import LoraSettings, attach, load_with_adapter, merged
from quicksviewer.utils.registry import load_target, lookup


@dataclass(frozen=True)
class Backend:
    """What differs between the two."""

    load: Callable[..., Loaded]
    """(name or adapter folder, load_in_4bit, device)"""
    attach: Callable[[Any, LoraSettings], Any]
    for_training: Callable[[Any], Any]
    for_inference: Callable[[Any], Any]
    write_merged: Callable[[Any, Any, Path, Any, Any], None]
    """(model, processor, folder, dtype, base)"""
    keeps_targets: bool
    """Whether forward can be asked for the logits of some places only."""


# --- transformers with PEFT


def _load(name: str, load_in_4bit: bool | None, device=None) -> Loaded:
    bits = {None: None, True: 4, False: 16}[load_in_4bit]
    is_adapter = (Path(name) / "adapter_config.json").is_file()
    return load_with_adapter(name, bits=bits, device=device) if is_adapter else load(name, bits, device)


def _write_merged(model, processor, folder: Path, dtype, base) -> None:
    whole = merged(model, base, dtype)
    load_target("quicksviewer.zoo.files:save_model")(whole, folder, processor=processor)


PORTABLE = Backend(
    load=_load,
    attach=attach,
    for_training=lambda model: model.train(),
    for_inference=lambda model: model.eval(),
    write_merged=_write_merged,
    keeps_targets=True,
)


# --- unsloth

HOW_TO_INSTALL = (
    "unsloth is missing. It pins other versions of torch and transformers than quicksviewer, so no extra "
    "brings it: in an environment of its own, pip install unsloth, then pip install --no-deps quicksviewer. "
    "backend: portable does without it"
)


def _unsloth():
    try:
        return importlib.import_module("unsloth").FastVisionModel
    except ModuleNotFoundError as error:
        if error.name != "unsloth":
            raise
        raise ModuleNotFoundError(HOW_TO_INSTALL, name="unsloth") from error


def _unsloth_load(name: str, load_in_4bit: bool | None, device=None) -> Loaded:
    wants_4bit = load_in_4bit is not False
    if device is not None and not str(device).startswith("cuda"):
        raise ValueError(f"unsloth runs on CUDA only, and device is {device}: backend: portable")
    model, processor = _unsloth().from_pretrained(
        name, load_in_4bit=wants_4bit, use_gradient_checkpointing="unsloth"
    )
    bits = 4 if wants_4bit else 16
    return Loaded(model, processor, bits, f"{name}: loaded by unsloth in {bits} bits")


def _unsloth_attach(model, settings: LoraSettings):
    """unsloth chooses layers by tower, not by name: patterns are refused."""
    if any(settings.targets.values()):
        raise ValueError("unsloth takes whole parts, no patterns of names: backend: portable")
    if "merger" in settings.targets and "vit" not in settings.targets:
        raise ValueError("unsloth adapts the merger with the vision tower: name vit in targets too")
    return _unsloth().get_peft_model(
        model,
        finetune_vision_layers="vit" in settings.targets,
        finetune_language_layers="lm" in settings.targets,
        finetune_attention_modules=True,
        finetune_mlp_modules=True,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias=settings.bias,
        random_state=settings.seed,
        use_rslora=settings.use_rslora,
        loftq_config=None,
    )


def _unsloth_write_merged(model, processor, folder: Path, dtype, base) -> None:
    """unsloth finds the 16-bit base by itself."""
    model.save_pretrained_merged(str(folder), processor, save_method="merged_16bit")


UNSLOTH = Backend(
    load=_unsloth_load,
    attach=_unsloth_attach,
    for_training=lambda model: _unsloth().for_training(model),
    for_inference=lambda model: _unsloth().for_inference(model),
    write_merged=_unsloth_write_merged,
    keeps_targets=False,
)

BACKENDS = {"portable": PORTABLE, "unsloth": UNSLOTH}
"""Name of the setting `backend` -> how it does things."""


def backend(name: str) -> Backend:
    """A row of BACKENDS."""
    return lookup(BACKENDS, name, "backend")
