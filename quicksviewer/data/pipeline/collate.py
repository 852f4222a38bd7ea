"""Encoded examples become one batch.

pixel_values         float32 (B, 3, S, S)
input_ids            int64 (B, T), padded on the right with the tokenizer's padding
attention_mask       int64 (B, T), 0 on padding
labels               int64 (B, T), padded with -100; of pairs (B,), 0 or 1
decoder_input_ids, decoder_attention_mask     int64 (B, T) of VQA, where the decoder's start is known
raw_image            list of PIL pictures, where it is asked for

Captions have the same ids in input_ids and labels: the decoder reads what it writes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.utils.batching import pad_rows


@dataclass(frozen=True, kw_only=True)
class PipelineCollator:
    """pad_id: the tokenizer's. to_text, to_target: lengths to which texts are padded; None: the longest."""

    pad_id: int
    has_start: bool = False
    to_text: int | None = None
    to_target: int | None = None

    def __call__(self, rows: list[dict]) -> dict:
        batch = {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}
        if "input_ids" in rows[0]:
            texts = [row["input_ids"] for row in rows]
            batch["input_ids"], batch["attention_mask"] = self._padded(texts, self.to_text)
        if "labels" in rows[0]:
            batch |= self._targets([row["labels"] for row in rows], reads_itself="input_ids" not in rows[0])
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        if "raw_image" in rows[0]:
            batch["raw_image"] = [row["raw_image"] for row in rows]
        return batch

    def _targets(self, targets: list[list[int]], reads_itself: bool) -> dict[str, Tensor]:
        ids, mask = self._padded(targets, self.to_target)
        found = {"labels": ids.masked_fill(mask == 0, IGNORE_INDEX)}
        if reads_itself:
            return {"input_ids": ids, "attention_mask": mask, **found}
        if self.has_start:
            found |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        return found

    def _padded(self, rows: list[list[int]], length: int | None) -> tuple[Tensor, Tensor]:
        ids, mask = pad_rows(rows, self.pad_id), pad_rows([[1] * len(row) for row in rows], 0)
        if length is None or (missing := length - ids.shape[1]) <= 0:
            return ids, mask
        pad = torch.nn.functional.pad
        return pad(ids, (0, missing), value=self.pad_id), pad(mask, (0, missing))
