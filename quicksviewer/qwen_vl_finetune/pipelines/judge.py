"""Heads on the tower: what they see of a batch, and how well they see a whole set of pictures."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader

from quicksviewer.qwen_vl_finetune.pipelines.batches import Batch
from quicksviewer.qwen_vl_finetune.pipelines.heads import ForensicHeads, HeadOutput, HeadsConfig, heat_at
from quicksviewer.qwen_vl_finetune.pipelines.metrics import MapScores
from quicksviewer.qwen_vl_finetune.pipelines.overlay import OverlayFolder
from quicksviewer.qwen_vl_finetune.pipelines.tap import VisualTap


def fresh_heads(tower: nn.Module, levels: int) -> ForensicHeads:
    """Heads of the seed's widths for a tower, on its device, from the current random state."""
    config = HeadsConfig(levels=levels, tower_width=tower.config.hidden_size)
    return ForensicHeads(config).to(next(tower.parameters()).device)


def look(tower: nn.Module, tap: VisualTap, heads: ForensicHeads, batch: Batch):
    """One call of the tower: what the heads say, and the merged tokens (sum of patches / 4, D) for the
    language model."""
    dtype = next(tower.parameters()).dtype
    seen = tower(batch.pixels_PD.to(dtype), grid_thw=batch.grid_B3)
    return heads(torch.stack(tap.maps(batch.grid_B3))), seen.pooler_output


class PictureScores:
    """Verdicts and heat maps of the heads over a set, picture by picture."""

    def __init__(self, pictures, overlays: OverlayFolder):
        self.pictures, self.overlays = pictures, overlays
        self.maps = MapScores()
        self.records: list[dict] = []

    def add(self, batch: Batch, output: HeadOutput, caption: Callable[[int], str]) -> None:
        """`caption`: place in the batch -> text below the drawing, behind the heads' verdict."""
        size = batch.inside_BSS.shape[-1]
        heat = heat_at(output.heat_logits_BHW, size, size).sigmoid().cpu().numpy()
        mask, inside = batch.mask_BSS.bool().cpu().numpy(), batch.inside_BSS.cpu().numpy()
        logits = output.class_logit_B.tolist()
        for place, index in enumerate(batch.index_B.tolist()):
            row, known = self.pictures.annotations[index], bool(batch.known_B[place])
            own = (math.nan, math.nan)
            if known:
                own = self.maps.add(heat[place], mask[place], inside[place], row.label)
            probability = 1 / (1 + math.exp(-max(-60.0, min(60.0, logits[place]))))
            self.records.append(
                {
                    "image_path": row.name,
                    "image_label": row.label,
                    "fake_probability": probability,
                    "predicted_label": int(probability >= 0.5),
                    "classification_logit": logits[place],
                    "evidence_mean_iou": own[0],
                    "evidence_mean_dice": own[1],
                }
            )
            text = f"{'fake' if row.label else 'real'}; heads: fake {probability:.3f}{caption(place)}"
            shown = mask[place] if known else None
            self.overlays.add(index, row, shown, heat[place], inside[place], text)


def each_batch(batches: DataLoader, device: torch.device, what: str):
    """Batches on the device, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    for batch in track(batches, what, console=console, transient=True, disable=not console.is_terminal):
        yield batch.to(device)
