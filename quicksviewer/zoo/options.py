"""How a checkpoint is loaded: numbers, device, quantisation, trust. Refused here, before a file is read."""

from dataclasses import dataclass
from typing import Any

import torch

from quicksviewer.utils.config import build
from quicksviewer.utils.registry import lookup, require

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NEAR_THE_FILES = ("attn_implementation", "revision", "cache_dir", "local_files_only", "use_safetensors")
"""Options that go on to transformers as they are, where they are set."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What `load_model` takes beside name, family, task and device."""

    dtype: Any = None
    """torch dtype or its name; None or "auto": that of the checkpoint."""
    torch_dtype: Any = None
    """The same under its older name."""
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    quantization_config: Any = None
    """transformers' own settings, in place of the two above."""
    device_map: Any = None
    """Spread over devices by accelerate, as "auto" does; the model is not moved afterwards."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint. Only the caller may decide this, never a file."""
    attn_implementation: str | None = None
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    use_safetensors: bool = True
    """False also reads pickled weights, which transformers then unpacks as tensors only."""

    def __post_init__(self):
        if self.dtype is not None and self.torch_dtype is not None:
            raise ValueError("dtype and torch_dtype are the same: give one")
        to_dtype(self.number_type)
        chosen = [n for n in ("load_in_4bit", "load_in_8bit", "quantization_config") if getattr(self, n)]
        if len(chosen) > 1:
            raise ValueError(f"choose one of {' and '.join(chosen)}")

    @property
    def number_type(self):
        return self.torch_dtype if self.dtype is None else self.dtype

    @property
    def is_quantised(self) -> bool:
        return self.load_in_4bit or self.load_in_8bit or self.quantization_config is not None

    def arguments(self, device: torch.device, precise: tuple[str, ...] = ()) -> dict:
        """Keyword arguments of `from_pretrained`. Quantised weights are made where they stay."""
        given = {name: getattr(self, name) for name in NEAR_THE_FILES}
        given = {name: value for name, value in given.items() if value is not None}
        given |= dict(dtype=to_dtype(self.number_type), trust_remote_code=self.trust_remote_code)
        if self.is_quantised:
            given["quantization_config"] = self.quantization(device, precise)
        if self.device_map is not None or self.is_quantised:
            given["device_map"] = self.device_map if self.device_map is not None else {"": str(device)}
        return given

    def quantization(self, device: torch.device, precise: tuple[str, ...]):
        """transformers' settings: 8 bit, or 4-bit nf4 with double quantisation; modules whose names end as
        `precise` keep their numbers. ModuleNotFoundError without bitsandbytes."""
        if self.quantization_config is not None:
            return self.quantization_config
        require("bitsandbytes", "quant")
        from transformers import BitsAndBytesConfig

        if self.load_in_8bit:
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(precise) or None)
        wanted = to_dtype(self.number_type)
        usual = torch.float32 if device.type == "cpu" else torch.bfloat16
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=wanted if isinstance(wanted, torch.dtype) else usual,
            llm_int8_skip_modules=list(precise) or None,
        )


def options_from(given: dict, where: str = "load_model") -> LoadOptions:
    """LoadOptions from keyword arguments; an unknown one is an error that says what was meant."""
    return build(LoadOptions, given, where)


def to_dtype(value) -> torch.dtype | str:
    """A torch dtype from itself or its name ("float16", "torch.float16"), or "auto"."""
    if value is None or value == "auto":
        return "auto"
    if isinstance(value, torch.dtype):
        return value
    return lookup(DTYPES, str(value).removeprefix("torch."), "dtype")


def to_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, or, for None, CUDA where there is one and else the CPU. ValueError for a
    device that this machine does not have."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is no device: {str(error).splitlines()[0]}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{found} was asked for, and this machine has {torch.cuda.device_count()} CUDA devices; "
            "device=None takes CUDA where there is one and else the CPU"
        )
    return found
