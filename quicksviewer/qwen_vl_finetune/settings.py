"""What a fine-tuning run is by default, and the one place to change it for code that says nothing.

The functions of this package take what they are not told from `current()`: the defaults below, those of
the YAML or JSON file that the environment variable QWEN_VL_FINETUNE_CONFIG names, or inside `using` the ones
given there. So a program that says no more than `main_training_pipeline()` runs on another model, other data,
another machine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from quicksviewer.qwen_vl_finetune.lora import LoraSettings
from quicksviewer.qwen_vl_finetune.tiny_base import BaseConfig
from quicksviewer.utils.config import build, load_mapping

CONFIG = "QWEN_VL_FINETUNE_CONFIG"
INSTRUCTION = "Write the LaTeX representation for this image."


@dataclass(frozen=True, kw_only=True)
class OcrSettings:
    """Model, data, training, generation and places of formula reading. A step sees batch_size times
    gradient_accumulation_steps samples."""

    model_name: str = "unsloth/Qwen2.5-VL-7B-Instruct-bnb-4bit"
    """A folder, a name on the hub, or for the command "synthetic": a tiny base, made as `tiny` says."""
    tiny: BaseConfig = field(default_factory=BaseConfig)
    load_in_4bit: bool | None = None
    """None: where it can run, else a warning and all bits. True: or an error."""
    backend: str = "portable"
    """A row of BACKENDS: transformers with PEFT, or unsloth."""
    device: str | None = None
    dataset_name: str = "unsloth/LaTeX_OCR"
    """A name on the hub, a folder, a .jsonl or .parquet file, or "synthetic"."""
    max_samples: int | None = None
    instruction: str = INSTRUCTION
    image_first: bool = True
    """The picture before the words, in training and in inference alike."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    batch_size: int = 2
    gradient_accumulation_steps: int = 4
    warmup_steps: int = 5
    max_steps: int = 30
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "linear"
    optim: str = "adamw_8bit"
    weight_decay: float = 0.01
    logging_steps: int = 1
    save_steps: int = 500
    seed: int = 3407
    max_length: int = 2048
    """Most tokens of a sample: an answer is cut there, a prompt refused."""
    gradient_checkpointing: bool | None = None
    """None: on GPUs."""
    max_new_tokens: int = 128
    temperature: float = 1.5
    min_p: float = 0.1
    eval_samples: int = 200
    """Held-out samples that the command measures."""
    eval_batch_size: int = 8
    output_dir: str = "outputs"
    adapter_dir: str = "lora_model"
    merged_dir: str = "unsloth_finetune"

    def __post_init__(self):
        for name in (
            *("batch_size", "gradient_accumulation_steps", "max_steps", "logging_steps", "save_steps"),
            *("max_length", "max_new_tokens", "eval_samples", "eval_batch_size"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, or nothing for all; got {self.max_samples}")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"learning_rate must be positive, weight_decay and warmup_steps not negative; got "
                f"{self.learning_rate}, {self.weight_decay} and {self.warmup_steps}"
            )
        if self.temperature <= 0 or not 0 <= self.min_p <= 1:
            raise ValueError(f"temperature must be positive and min_p between 0 and 1, got {self}")


def read_settings(path: str | os.PathLike) -> OcrSettings:
    """The settings of a YAML or JSON file; keys that it leaves out keep their defaults."""
    return build(OcrSettings, load_mapping(path), str(path))


_USED: ContextVar[OcrSettings | None] = ContextVar("settings", default=None)


def current() -> OcrSettings:
    """The settings of `using`, else of the file that QWEN_VL_FINETUNE_CONFIG names, else the defaults."""
    if (used := _USED.get()) is not None:
        return used
    path = os.environ.get(CONFIG)
    return read_settings(path) if path else OcrSettings()


@contextmanager
def using(settings: OcrSettings) -> Iterator[OcrSettings]:
    """Inside, `current()` gives these settings."""
    token = _USED.set(settings)
    try:
        yield settings
    finally:
        _USED.reset(token)
