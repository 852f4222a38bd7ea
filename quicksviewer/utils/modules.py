"""Any nn.Module: how large it is, what of it learns, where it lies.

A part of a module is named by a dotted prefix of its parameters' names ("model.layers.0"). Sizes are those of
the whole module, also where a rank holds a piece only (ZeRO-3) or the numbers are packed (4-bit).
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class PartRow:
    """One line of the report on what learns: parameters, how many of them learn, tensors they lie in."""

    part: str
    parameters: int
    trainable: int
    tensors: int


# --- size ---


def num_elements(parameter: nn.Parameter) -> int:
    """Numbers that a parameter stands for, not those that this process stores."""
    if hasattr(parameter, "ds_numel"):  # ZeRO-3 leaves an empty tensor on the module
        return parameter.ds_numel
    packed = getattr(parameter, "quant_state", None)  # bitsandbytes, once it has packed two numbers in a byte
    return parameter.numel() if packed is None else math.prod(packed.shape)


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Parameters of the whole module, a shared one once."""
    return sum(num_elements(p) for p in module.parameters() if p.requires_grad or not trainable_only)


def get_model_size_mb(module: nn.Module) -> float:
    """MiB that parameters and buffers take; for a sharded module, all shards together."""
    parameters = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in module.parameters())
    buffers = sum(b.numel() * b.element_size() for b in module.buffers())
    return (parameters + buffers) / 2**20


# --- what learns ---


def freeze_model(model: Module, freeze_layers: Iterable[str] | None = None) -> Module:
    """Stop the learning of the whole model, or of the parts under the given prefixes."""
    for _, parameter in _selected(model, freeze_layers):
        parameter.requires_grad_(False)
    return model


def unfreeze_model(model: Module, unfreeze_layers: Iterable[str] | None = None) -> Module:
    """Let the whole model learn, or the parts under the given prefixes."""
    for name, parameter in _selected(model, unfreeze_layers):
        if not (parameter.is_floating_point() or parameter.is_complex()):
            raise ValueError(f"{name} is quantised ({parameter.dtype}) and cannot learn; train an adapter")
        parameter.requires_grad_(True)
    return model


def train_only(model: Module, prefixes: Iterable[str]) -> Module:
    """Freeze everything, then thaw what lies under the prefixes. A prefix without parameters is an error."""
    return unfreeze_model(freeze_model(model), prefixes)


def parts_report(model: nn.Module, parts: Mapping[str, tuple[str, ...]]) -> list[PartRow]:
    """A row per part, in the given order, then "other" for the rest; a shared tensor counts once."""
    members: dict[str, list[nn.Parameter]] = {part: [] for part in (*parts, "other")}
    for name, parameter in model.named_parameters():
        part = next((part for part, prefixes in parts.items() if _is_under(name, prefixes)), "other")
        members[part].append(parameter)
    return [
        PartRow(
            part=part,
            parameters=sum(map(num_elements, tensors)),
            trainable=sum(num_elements(p) for p in tensors if p.requires_grad),
            tensors=len(tensors),
        )
        for part, tensors in members.items()
    ]


def _is_under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _selected(model: nn.Module, prefixes: Iterable[str] | None) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters under the prefixes, or all of them. A tied one is found under each of its names."""
    named = list(model.named_parameters(remove_duplicate=False))
    if prefixes is None:
        return iter(named)
    if isinstance(prefixes, str):
        raise ValueError(f"expected a list of prefixes, got the text {prefixes!r}")
    prefixes = tuple(prefixes)
    for prefix in prefixes:
        if not any(_is_under(name, (prefix,)) for name, _ in named):
            known = _what_there_is(prefix, named)
            raise ValueError(f"no parameter of {type(model).__name__} lies under {prefix!r}. {known}")
    return ((name, parameter) for name, parameter in named if _is_under(name, prefixes))


def _what_there_is(prefix: str, named: list[tuple[str, nn.Parameter]]) -> str:
    """For a prefix that matches nothing: the parts of the model, and what is called alike further inside."""
    pieces = [name.split(".") for name, _ in named]
    outer = list(dict.fromkeys(parts[0] for parts in pieces))
    known = dict.fromkeys(".".join(parts[:end]) for parts in pieces for end in range(1, len(parts) + 1))
    near = [name for name in known if name.endswith(f".{prefix}")][:3]
    near += difflib.get_close_matches(prefix, known, n=3)
    hint = f" Near: {', '.join(dict.fromkeys(near))}" if near else ""
    return f"It has: {', '.join(outer)}.{hint}"


# --- quantised modules ---


def quantised_modules(model: nn.Module) -> list[str]:
    """Names of the modules whose weights bitsandbytes has packed in 4 or 8 bits."""
    return [name for name, m in model.named_modules() if type(m).__module__.startswith("bitsandbytes.")]


def keep_4bit_layout(model: nn.Module) -> None:
    """Let logits in eval mode be those of training: on CPUs with bfloat16 instructions bitsandbytes would
    pack 4-bit weights anew for the first call, and fail at widths that are no multiple of its block."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


# --- place ---


def get_device(module: nn.Module) -> torch.device:
    """Where the first tensor with contents lies; "meta" if none has any, the CPU if there is no tensor."""
    devices = [t.device for t in (*module.parameters(), *module.buffers())]
    return next((d for d in devices if d.type != "meta"), devices[0] if devices else torch.device("cpu"))


def move_model_to_device(model: Module, device: str | torch.device) -> Module:
    """The model on `device`. Where that would break it (quantised, spread, sharded), an error says so."""
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{device} was asked for, and this machine has no CUDA device")
    fixed = _why_fixed(model)
    if fixed is None:
        return model.to(device)
    here = get_device(model)
    if here.type != device.type or (device.index is not None and here.index != device.index):
        raise ValueError(f"{type(model).__name__} stays on {here}: it {fixed}")
    return model


def _why_fixed(model: nn.Module) -> str | None:
    """Marks that transformers, accelerate and DeepSpeed leave on models that must not be moved as a whole."""
    if getattr(model, "is_quantized", False):
        return "is quantised; load it on the other device"
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "is spread over devices; load it with another device_map"
    if any(hasattr(p, "ds_numel") for p in model.parameters()):
        return "is sharded over processes by ZeRO-3"
    return None
