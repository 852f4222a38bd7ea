"""A Qwen2.5-VL checkpoint becomes a model and its processor, in 4 bits where that can run.

loaded = load("Qwen/Qwen2.5-VL-7B-Instruct")
print(loaded.statement)                    # how it was loaded, and why not in 4 bits where it was not
model = attach(loaded.model, LoraSettings())      # lora.py
"""

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from quicksviewer.utils.registry import load_target, require
from quicksviewer.utils.utils import get_logger

LOADER = "quicksviewer.zoo.loader:load_model"
BITS = (4, 8, 16)
"""Ways to hold weights; 16 stands for the checkpoint's own numbers, whatever they are."""
QUANTISES_ON = ("cpu", "cuda", "xpu")
"""Devices that bitsandbytes has 4-bit and 8-bit kernels for."""

log = get_logger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its processor, the bits of its weights, and a sentence on how it came so."""

    model: Any
    processor: Any
    bits: int
    statement: str


def load(
    name: str | os.PathLike,
    bits: int | None = None,
    device: str | torch.device | None = None,
    dtype: Any = None,
    **options,
) -> Loaded:
    """The model and processor of a folder or a name on the hub.

    bits: 4, 8 or 16; None takes 4 where they can run and otherwise 16, and says which and why. A checkpoint
    that is stored quantised keeps its bits. options: the zoo's LoadOptions. ValueError for other bits than
    those, ModuleNotFoundError for asked-for 4 or 8 bits without bitsandbytes.
    """
    if bits is not None and bits not in BITS:
        raise ValueError(
            f"bits must be one of {', '.join(map(str, BITS))}, or None for what runs; got {bits}"
        )
    device = load_target("quicksviewer.zoo.options:to_device")(device)
    if stored := _stored_bits(name, options):
        require("bitsandbytes", "quant")
        bits, statement = stored, f"{name}: stored in {stored} bits"
    else:
        bits, statement = _choose(name, bits, device)
        options |= {4: {"load_in_4bit": True}, 8: {"load_in_8bit": True}}.get(bits, {})
    found = load_target(LOADER)(
        os.fspath(name), task="conditional_generation", device=device, dtype=dtype, **options
    )
    log.info(statement)
    return Loaded(found["model"], found["processor"], bits, statement)


def _choose(name, bits: int | None, device: torch.device) -> tuple[int, str]:
    """The bits to load in, and the statement on it."""
    lacking = why_not_quantised(device)
    if bits is None and lacking:
        log.warning("%s is loaded with all bits of its weights, 4 to 8 times the memory: %s", name, lacking)
        return 16, f"{name}: all bits of its weights, because {lacking}"
    if bits in (4, 8) and lacking:
        require("bitsandbytes", "quant")
        raise ValueError(f"bits={bits}: {lacking}; bits=16 loads all bits of the weights")
    bits = bits or 4
    return bits, f"{name}: {'all' if bits == 16 else bits} bits of its weights on {device}"


def why_not_quantised(device: torch.device) -> str:
    """Why 4 and 8 bits cannot run here; nothing where they can."""
    if find_spec("bitsandbytes") is None:
        return "bitsandbytes is missing (pip install 'quicksviewer[quant]')"
    if device.type not in QUANTISES_ON:
        return f"bitsandbytes does not run on {device.type}"
    return ""


def _stored_bits(name, options: dict) -> int | None:
    """Bits that a checkpoint is stored in, from its config.json; None where it is not quantised."""
    build = load_target("quicksviewer.zoo.options:options_from")
    config = load_target("quicksviewer.zoo.files:read_config")(name, build(options))
    stored = config.get("quantization_config")
    if not stored:
        return None
    if stored.get("quant_method") != "bitsandbytes":
        raise ValueError(
            f"{name} is quantised by {stored.get('quant_method')!r}; adapters train over bitsandbytes"
        )
    return 8 if stored.get("load_in_8bit") else 4


def base_of(folder: str | os.PathLike) -> str:
    """The model that an adapter folder was trained on, as its adapter_config.json names it.

    FileNotFoundError where the folder holds no adapter in safetensors.
    """
    folder = Path(folder)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no adapter: it has no {file}")
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    if not base:
        raise ValueError(f"{folder}/adapter_config.json names no base model; give it as `base`")
    return base
