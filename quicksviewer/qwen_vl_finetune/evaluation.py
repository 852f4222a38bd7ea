"""How well a model reads formulas: greedy answers beside what was meant, in several measures."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from quicksviewer.qwen_vl_finetune.metrics import METRICS, character_error_rate
from quicksviewer.qwen_vl_finetune.prompts import batched, encode_prompt, user_turn
from quicksviewer.qwen_vl_finetune.settings import OcrSettings, current
from quicksviewer.utils.generation import GREEDY
from quicksviewer.utils.image import to_rgb
from quicksviewer.utils.modules import get_device


@torch.inference_mode()
def read_pictures(
    model: Any,
    processor: Any,
    images: list,
    instruction: str | None = None,
    max_new_tokens: int | None = None,
    image_first: bool | None = None,
) -> list[tuple[str, bool]]:
    """Greedy answer of each picture, and whether the model ended it itself. One batch."""
    settings = current()
    first = settings.image_first if image_first is None else image_first
    turn = [user_turn(instruction or settings.instruction, image_first=first)]
    rows = [encode_prompt(processor, turn, [to_rgb(image)]) for image in images]
    batch = batched(rows, processor.tokenizer.pad_token_id, "left")
    batch = {key: value.to(get_device(model)) for key, value in batch.items()}
    was_training = model.training
    ids = model.eval().generate(
        **batch,
        **GREEDY,
        max_new_tokens=max_new_tokens or settings.max_new_tokens,
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    model.train(was_training)
    written = ids[:, batch["input_ids"].shape[1] :]
    ended = (written == processor.tokenizer.eos_token_id).any(dim=1).tolist()
    texts = processor.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [(text.strip(), end) for text, end in zip(texts, ended, strict=True)]


def evaluate(model: Any, processor: Any, dataset, settings: OcrSettings | None = None, tell=None) -> dict:
    """All METRICS of the greedy answers to a data set, its first `eval_samples` rows, with a record of each.

    `tell(done, total)` is called after every batch.
    """
    settings = settings or current()
    total, began, records = min(len(dataset), settings.eval_samples), time.perf_counter(), []
    for start in range(0, total, settings.eval_batch_size):
        places = range(start, min(total, start + settings.eval_batch_size))
        rows = [dataset[place] for place in places]
        said = read_pictures(model, processor, [row["image"] for row in rows], settings.instruction,
                             settings.max_new_tokens, settings.image_first)  # fmt: skip
        for place, row, (text, ended) in zip(places, rows, said, strict=True):
            meant = row["text"].strip()
            record = dict(index=place, expected=meant, predicted=text, ended=ended)
            records.append(record | {"cer": character_error_rate([text], [meant])})
        if tell:
            tell(len(records), total)
    return summary(records) | {"seconds": round(time.perf_counter() - began, 2), "records": records}


def summary(records: list[dict]) -> dict:
    """The measures of some records, by name, and how many answers the model did not end itself."""
    predicted = [record["predicted"] for record in records]
    expected = [record["expected"] for record in records]
    found = {name: measure(predicted, expected) for name, measure in METRICS.items()}
    unended = sum(not record["ended"] for record in records)
    return {"samples": len(records), **found, "not_ended": unended}


def compare(before: dict, after: dict) -> list[tuple[str, float, float]]:
    """(measure, before, after) of two evaluations, for a table."""
    return [(name, before[name], after[name]) for name in METRICS]


def write_result(path: str | Path, before: dict | None, after: dict, about: dict) -> None:
    """Both evaluations as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "before": before, "after": after}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
