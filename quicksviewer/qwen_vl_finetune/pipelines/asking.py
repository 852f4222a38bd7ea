"""A whole Qwen2.5-VL with trained adapters, asked whether pictures are fake: tasks 1 (full model) and 2.

The probability compares what the model thinks of the two answers; the text that it would write is beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quicksviewer.qwen_vl_finetune.load import load
from quicksviewer.qwen_vl_finetune.lora import add_saved
from quicksviewer.qwen_vl_finetune.pipelines.annotations import Annotation, read_annotations
from quicksviewer.qwen_vl_finetune.pipelines.batches import Batch, PictureSet, loader
from quicksviewer.qwen_vl_finetune.pipelines.config import dtype_named
from quicksviewer.qwen_vl_finetune.pipelines.journal import save_results
from quicksviewer.qwen_vl_finetune.pipelines.judge import each_batch
from quicksviewer.qwen_vl_finetune.pipelines.language import (
    Prompts,
    Rows,
    image_tokens,
    make_rows,
    states,
    word_scores,
)
from quicksviewer.qwen_vl_finetune.pipelines.metrics import classification
from quicksviewer.qwen_vl_finetune.pipelines.settings import Asking
from quicksviewer.utils.dist import seed_everything
from quicksviewer.utils.generation import GREEDY

RESULTS = "inference_results.json"


def whole_model(name: str, dtype: str) -> tuple[nn.Module, Any]:
    """Model with all bits of its weights, and its processor."""
    loaded = load(name, bits=16, dtype=dtype_named(dtype))
    return loaded.model, loaded.processor


def ask_all(
    config: Any,
    adapters: Path,
    model_path: str,
    size: int,
    run_id: str,
    rows: Sequence[tuple[Annotation, str]] | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """Figures over all pictures and a record of each, written beside the CSV. `config`: paths and Asking.

    `rows`: pictures with their questions, in place of annotation_file and prompt_text.
    """
    seed_everything(config.seed)
    if rows is None:
        annotations = read_annotations(
            config.data / config.annotation_file, config.data, config.dataset_limit
        )
        rows = [(annotation, config.prompt_text) for annotation in annotations]
    model, processor = whole_model(config.model(model_path), config.torch_dtype)
    model = add_saved(model, adapters).eval()
    asked = Asked(model, processor, config)
    pictures = PictureSet([row for row, _ in rows], processor.image_processor, size)
    records = []
    with torch.inference_mode():
        for batch in each_batch(loader(pictures, config.batch_size, 0), asked.device, "asking"):
            places = batch.index_B.tolist()
            probabilities, texts = asked(batch, [rows[place][1] for place in places])
            for place, probability, text in zip(places, probabilities, texts, strict=True):
                records.append(_record(rows[place][0], probability, text))
    labels = [record["image_label"] for record in records]
    figures = classification(labels, [record["fake_probability"] for record in records])
    figures |= {"num_samples": len(records), "positive_ratio": sum(labels) / len(labels)}
    beside = config.output(config.csv_path).with_name(RESULTS)
    save_results(
        config.output(config.output_json) if config.output_json else beside, run_id, figures, records
    )
    return figures, records


def _record(row: Annotation, probability: float, text: str | None) -> dict[str, Any]:
    record = {
        "image_path": row.name,
        "image_label": row.label,
        "fake_probability": probability,
        "predicted_label": int(probability >= 0.5),
    }
    return record if text is None else record | {"generated_text": text}


class Asked:
    """A model that gives its verdict on batches of pictures."""

    def __init__(self, model: nn.Module, processor, config: Asking):
        self.model, self.config = model, config
        self.base = model.get_base_model()
        self.device = next(model.parameters()).device
        self.prompts = Prompts(processor)
        self.words = self.prompts.words(config.fake_token, config.real_token)

    def __call__(self, batch: Batch, questions: Sequence[str]) -> tuple[list[float], list[str | None]]:
        """P(fake) of each picture, in 0 .. 1, and what the model would write."""
        tower = self.base.model.visual
        pixels = batch.pixels_PD.to(next(tower.parameters()).dtype)
        vision = tower(pixels, grid_thw=batch.grid_B3).pooler_output
        counts = image_tokens(batch.grid_B3, tower.spatial_merge_size)
        ids = [self.prompts.ids(text, count) for text, count in zip(questions, counts, strict=True)]
        scores = word_scores(
            self.base,
            lambda head: make_rows(self.prompts, ids, [head] * len(ids), self.device),
            self.words,
            lambda rows: states(self.base, rows, batch.grid_B3, vision),
        )
        probabilities = scores.softmax(dim=1)[:, 0].tolist()
        if not self.config.max_new_tokens:
            return probabilities, [None] * len(ids)
        return probabilities, [self._write(row, batch, place) for place, row in enumerate(ids)]

    def _write(self, ids: list[int], batch: Batch, place: int) -> str:
        """What the model answers to one question; alone, so that nothing is padded on the left."""
        choice: dict[str, Any] = GREEDY
        if self.config.temperature:
            choice = dict(do_sample=True, temperature=self.config.temperature, top_p=self.config.top_p)
        sizes = batch.grid_B3.prod(dim=1).tolist()
        pixels = batch.pixels_PD.split(sizes)[place]
        rows: Rows = make_rows(self.prompts, [ids], [[]], self.device)
        written = self.base.generate(
            input_ids=rows.input_ids_BT,
            attention_mask=rows.attention_mask_BT,
            mm_token_type_ids=rows.is_image_BT.int(),
            pixel_values=pixels.to(self.base.dtype),
            image_grid_thw=batch.grid_B3[place : place + 1],
            max_new_tokens=self.config.max_new_tokens,
            pad_token_id=self.prompts.pad_id,
            eos_token_id=self.prompts.end_id,
            **choice,
        )
        return self.prompts.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True).strip()
