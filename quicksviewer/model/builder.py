"""Checkpoint folder -> tokenizer, model, processor. What is in a folder is read from its config, never from
its name."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from quicksviewer.constants import MODEL_TOKENS
from quicksviewer.model.config import MultimodalConfig
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.model.processor import QuicksviewerProcessor, add_special_tokens, time_token_ids
from quicksviewer.utils.registry import load_target, lookup, require

_HOME = "quicksviewer.model.language_model"
BACKBONES = {
    "qwen2": (f"{_HOME}.llava_qwen:LlavaQwenConfig", f"{_HOME}.llava_qwen:LlavaQwenForCausalLM"),
    "llama": (f"{_HOME}.llava_llama:LlavaLlamaConfig", f"{_HOME}.llava_llama:LlavaLlamaForCausalLM"),
    "minimind": (
        f"{_HOME}.llava_minimind:LlavaMiniMindConfig",
        f"{_HOME}.llava_minimind:LlavaMiniMindForCausalLM",
    ),
}
"""model_type of a language model -> our config and class."""
OURS = {
    "llava_qwen": BACKBONES["qwen2"],
    "llava_llama": BACKBONES["llama"],
    "llava_minimind": BACKBONES["minimind"],
}
"""model_type of our own checkpoints -> config and class."""
TOWER_KINDS = {
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "clip": "clip",
    "clip_vision_model": "clip",
}
ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OTHER_FILE = "other_trained.safetensors"
"""A LoRA checkpoint holds PEFT's adapter and, beside it, every other tensor that its base does not have."""


@dataclass(frozen=True)
class Loaded:
    """A model ready for use."""

    tokenizer: Any
    model: Any
    processor: QuicksviewerProcessor
    context_length: int


def read_model_type(folder: str | Path) -> str:
    """model_type of a checkpoint folder. ValueError where there is no checkpoint."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no checkpoint folder: it has no config.json")
    try:
        model_type = dict(json.loads(path.read_text())).get("model_type")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not JSON of a config: {error}") from error
    if model_type is None:
        raise ValueError(f"{path} does not say its model_type")
    return model_type


def is_ours(folder: str | Path) -> bool:
    """Whether a folder holds a video model of this project (else: a plain language model)."""
    return read_model_type(folder) in OURS


def read_tower(folder: str | Path) -> dict:
    """kind and hf (the transformers vision config as a mapping) of a CLIP or SigLIP checkpoint folder."""
    kind = lookup(TOWER_KINDS, read_model_type(folder), "vision tower")
    config = json.loads((Path(folder) / "config.json").read_text())
    vision = config.get("vision_config", config)
    known = load_target(
        {"siglip": "transformers:SiglipVisionConfig", "clip": "transformers:CLIPVisionConfig"}[kind]
    )
    fields = set(known().to_dict()) - {"transformers_version", "architectures", "dtype", "_name_or_path"}
    return {"kind": kind, "hf": {key: value for key, value in vision.items() if key in fields}}


def new_mm_config(tokenizer, tower: dict, overrides: dict) -> MultimodalConfig:
    """The vision side of a fresh model: a tower, the recipe's settings, and the ids that the tokenizer
    gives."""
    values = {
        **overrides,
        "tower": {**overrides.get("tower", {}), **tower},
        "first_special_id": add_special_tokens(tokenizer),
        "time_token_ids": time_token_ids(tokenizer),
    }
    return MultimodalConfig.from_dict(values)


def new_model(
    language_model: str, vision_tower: str, overrides: dict, template: str, media: dict, **load
) -> Loaded:
    """A video model from a plain language model and a vision tower: what stage 1 starts from."""
    config_class, model_class = _classes(BACKBONES, read_model_type(language_model))
    tokenizer = AutoTokenizer.from_pretrained(language_model, local_files_only=True)
    mm = new_mm_config(tokenizer, read_tower(vision_tower), overrides)
    _check_format(vision_tower)
    plain, _ = config_class.get_config_dict(language_model, local_files_only=True)
    config = config_class(**{key: value for key, value in plain.items() if key != "model_type"})
    model = _from_pretrained(model_class, language_model, config, **load)
    with _readable(vision_tower):
        model.initialize_vision_modules(mm, vision_tower)
    _check_room(model, mm)
    processor = QuicksviewerProcessor(tokenizer, mm.to_dict(), template, media)
    return Loaded(tokenizer, model, processor, config.max_position_embeddings)


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    load_4bit: bool = False,
    load_8bit: bool = False,
    attn_implementation: str | None = None,
) -> Loaded:
    """Tokenizer, model, processor and context length of a checkpoint of this project, full or LoRA, in eval
    mode.

    `model_base`: where a LoRA checkpoint's language model lies, if not where it lay in training. An adapter
    is merged, but not into quantised weights, which would round it: it stays beside them, as in training.
    """
    config_class, model_class = _classes(OURS, read_model_type(model_path))
    config = config_class.from_pretrained(model_path, local_files_only=True)
    if load_4bit and load_8bit:
        raise ValueError("choose one of load_4bit and load_8bit")
    bits = 4 if load_4bit else 8 if load_8bit else 16
    load = dict(dtype=dtype, attn_implementation=attn_implementation, quantization=quantization(bits, dtype))
    if (Path(model_path) / ADAPTER_FILE).is_file():
        model = _load_adapter(model_class, config, model_path, model_base, load)
    else:
        model = _from_pretrained(model_class, model_path, config, **load)
    processor = QuicksviewerProcessor.from_pretrained(model_path, local_files_only=True)
    model.generation_config.eos_token_id = processor.stop_ids
    model.generation_config.pad_token_id = processor.pad_id
    model = model.to(device) if device is not None and load["quantization"] is None else model
    return Loaded(processor.tokenizer, model.eval(), processor, config.max_position_embeddings)


def _classes(table: dict, model_type: str):
    return tuple(load_target(name) for name in lookup(table, model_type, "model type"))


def _from_pretrained(model_class, folder, config, dtype=None, attn_implementation=None, quantization=None):
    """transformers' loader, with a refusal where it would only warn: every weight must come from the
    folder, and from its safetensors files. Nothing is unpickled."""
    extra = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization is not None:
        extra |= {"quantization_config": quantization, "device_map": {"": _current_device()}}
    extra |= dict(dtype=dtype or "auto", local_files_only=True, output_loading_info=True)
    extra["use_safetensors"] = True
    with _readable(folder):
        model, report = model_class.from_pretrained(folder, config=config, **extra)
    _without_repacking(model)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    _check_weights(folder, set(report["missing_keys"]) - tied, report["unexpected_keys"])
    return model


def _check_format(folder: str | Path, pattern: str = "*.safetensors") -> None:
    """ValueError for a folder in which the libraries would go on to look for a pickle."""
    if not any(Path(folder).glob(pattern)):
        raise ValueError(f"{folder} has no {pattern}; other formats of weights are not read")


@contextmanager
def _readable(folder):
    """A damaged weight file becomes an error that names its folder."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{folder} has a damaged weight file: {error}") from error


def _check_weights(source, missing, strangers=()) -> None:
    if missing := sorted(missing):
        raise ValueError(f"{source} lacks {len(missing)} weights of the model, such as {missing[:3]}")
    if strangers := sorted(strangers):
        raise ValueError(
            f"{source} has {len(strangers)} weights that no module wants, such as {strangers[:3]}"
        )


def _load_adapter(model_class, config, folder, base, load):
    """The base language model, the vision side and everything else that was trained, then the LoRA
    adapter."""
    base = base or json.loads((Path(folder) / ADAPTER_FILE).read_text())["base_model_name_or_path"]
    is_whole = is_ours(base)
    if is_whole:
        model = _from_pretrained(model_class, base, config, **load)
    else:
        mm, config.mm = MultimodalConfig.from_dict(config.mm), None
        model = _from_pretrained(model_class, base, config, **load)
        model.initialize_vision_modules(mm)
    with _readable(folder):
        tensors = load_file(Path(folder) / OTHER_FILE)
        report = model.load_state_dict(tensors, strict=False)
        eyes = {name for name in report.missing_keys if name.split(".")[0] not in PARTS["llm"]}
        _check_weights(Path(folder) / OTHER_FILE, () if is_whole else eyes, report.unexpected_keys)
        return _with_adapter(model, folder)


def _with_adapter(model, folder):
    """The model with the LoRA adapter of a folder; PEFT would only warn of weights that are not there."""
    from peft import PeftModel, get_peft_model_state_dict

    _check_format(folder, ADAPTER_WEIGHTS)
    peft = PeftModel.from_pretrained(model, folder, local_files_only=True)
    with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as file:
        _check_weights(Path(folder) / ADAPTER_WEIGHTS, get_peft_model_state_dict(peft).keys() - file.keys())
    return peft.get_base_model() if getattr(model, "is_quantized", False) else peft.merge_and_unload()


def quantization(bits: int, dtype: torch.dtype | str | None = None):
    """How the language model's linear layers are stored in `bits` (4: nf4 with double quantisation), computed
    in `dtype`; None for 16. Vision modules and the head stay as they are. ModuleNotFoundError without
    bitsandbytes."""
    if bits == 16:
        return None
    require("bitsandbytes", "quant")
    from transformers import BitsAndBytesConfig

    own = [prefix for part in PARTS if part != "llm" for prefix in PARTS[part]] + ["lm_head"]
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=own)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else torch.bfloat16,
        llm_int8_skip_modules=own,
    )


def _without_repacking(model) -> None:
    """On CPUs with bfloat16 instructions bitsandbytes packs 4-bit weights anew for the first call in eval
    mode: logits are then others than in training, and widths that are no multiple of its block an error."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _current_device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _check_room(model, mm: MultimodalConfig) -> None:
    """Timestamps are written with words of the language model; our own tokens need none of its rows."""
    rows = model.config.vocab_size
    if max(mm.time_token_ids) >= rows:
        raise ValueError(f"timestamp ids {mm.time_token_ids} exceed the {rows} rows of the embedding")
    if len(MODEL_TOKENS) != model.mm_tokens.num_embeddings:
        raise ValueError("the table of the project's own tokens has the wrong size")
