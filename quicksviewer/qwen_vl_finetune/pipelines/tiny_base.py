"""A tiny Qwen2.5-VL that knows the question and its two words: what a published model brings to this work,
in small.

Random weights, warmed up on crude fakes alone: a black box painted over the picture, every picture from a
camera of its own. It has seen neither a forgery of `synthetic.forgeries` nor the camera of those pictures.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from quicksviewer.qwen_vl_finetune.pipelines.asking import whole_model
from quicksviewer.qwen_vl_finetune.pipelines.language import (
    Prompts,
    answer_loss,
    image_tokens,
    make_rows,
    states,
)
from quicksviewer.qwen_vl_finetune.pipelines.settings import QUESTION
from quicksviewer.synthetic.forgeries import region, sensor, shot
from quicksviewer.utils.registry import load_target
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

MAKER = "quicksviewer.synthetic.tiny_vlm:make_vlm"
SPREAD = 0.125
"""Of random weights: about 1 / sqrt(width), so that signals keep their size from layer to layer."""
TOWER = dict(depth=4, fullatt_block_indexes=[1, 3], window_size=112, initializer_range=SPREAD)
TEXT = dict(initializer_range=SPREAD, tie_word_embeddings=True)
STAMP = "tiny_base.json"


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """How long the base is warmed up."""

    tokenizer: str = "learned"
    """A row of tiny_vlm's QWEN_TOKENIZERS: some hundred tokens, or Qwen's own 151,665, which learn far
    slower."""
    steps: int = 100
    batch_size: int = 8
    rate: float = 2e-3
    size: int = 112
    seed: int = 0
    prompts: tuple[str, ...] = (QUESTION, ".")
    """Asked in turn: those of the pipelines."""


def make_base(folder: Path, config: BaseConfig | None = None) -> Path:
    """The checkpoint folder, made unless one of the same settings lies there."""
    config = config or BaseConfig()
    stamp, wanted = folder / STAMP, json.dumps(asdict(config), indent=1)
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    words = [QUESTION, "Fake", "Real", "user", "assistant"] * 3
    load_target(MAKER)(
        folder, "qwen2_5_vl", words, config.seed, tokenizer=config.tokenizer, text=TEXT, vision=TOWER
    )
    if config.steps:
        _warm_up(folder, config)
    stamp.write_text(wanted)
    return folder


def crude_picture(seed: int, number: int, size: int) -> tuple[Image.Image, int]:
    """A picture and its label: odd numbers are painted over."""
    rng = np.random.default_rng([seed, 17, number])
    pixels = shot(rng, size, size, sensor(int(rng.integers(1 << 30))))
    if number % 2:
        pixels[region(rng, size, size)] = 0
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), number % 2


def _warm_up(folder: Path, config: BaseConfig) -> None:
    """All weights learn the answers to crude pictures."""
    model, processor = whole_model(str(folder), "float32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    prompts, mean = Prompts(processor), 0.0
    words = [[*ids, prompts.end_id] for ids in prompts.words("Real", "Fake")]
    model.train()
    for step in range(config.steps):
        numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
        pictures, labels = zip(*(crude_picture(config.seed, n, config.size) for n in numbers), strict=True)
        seen = processor.image_processor(images=list(pictures), do_resize=False, return_tensors="pt")
        grid = seen["image_grid_thw"]
        tower = model.model.visual
        vision = tower(seen["pixel_values"], grid_thw=grid).pooler_output
        text = config.prompts[step % len(config.prompts)]
        questions = [prompts.ids(text, count) for count in image_tokens(grid, tower.spatial_merge_size)]
        rows = make_rows(prompts, questions, [words[label] for label in labels], vision.device)
        loss = answer_loss(model, states(model, rows, grid, vision), rows.labels_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean = 0.9 * mean + 0.1 * loss.item() if step else loss.item()
        if (step + 1) % 50 == 0:
            logger.info("base: step %d of %d, loss %.3f", step + 1, config.steps, mean)
    model.eval().save_pretrained(folder)
