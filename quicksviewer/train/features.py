"""A frozen tower looks at every medium once per data set and not once per epoch (`--feature_cache`).

Rows of the data set bring what is stored (data/features.py); here the tower sees the rest, and it is stored.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quicksviewer.data.features import FeatureStore, Seen, tower_digest
from quicksviewer.train.lora import names_of
from quicksviewer.train.stages import STAGES


def check_features(run) -> None:
    """ValueError where `--feature_cache` is given to a run whose tower learns, or is spread over ranks."""
    if run.training.feature_cache is None:
        return
    adapted = names_of(run.model.lora_parts) if run.model.lora_enable else ()
    if "vision_tower" in (*STAGES[run.stage], *adapted):
        raise ValueError(
            f"--feature_cache keeps what a frozen vision tower sees, but {run.stage} trains it here; leave "
            "the flag out"
        )
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        raise ValueError("--feature_cache needs the tower whole on every rank: use ZeRO-2, not ZeRO-3")


def check_no_team(run, team_size: int) -> None:
    """ValueError where a team shares the frames of a medium, so that no rank has all of its tokens."""
    if run.training.feature_cache is not None and team_size > 1:
        raise ValueError("--feature_cache does not work with sequence parallelism; leave one of them out")


def open_store(run, tower: nn.Module, processor) -> FeatureStore | None:
    """The store of a run, in a folder of its own for this tower, number format and way to read media."""
    if run.training.feature_cache is None:
        return None
    return FeatureStore(
        run.training.feature_cache,
        tower=tower_digest(tower),
        attention=tower.attn_implementation,
        size=tower.image_size,
        dtype=str(tower.vision.dtype),
        autocast=[name for name in ("bf16", "fp16") if getattr(run.training, name)],
        media=processor.media,
    )


@dataclass(frozen=True)
class FeatureCache:
    """The tower and the store of its tokens."""

    tower: nn.Module
    store: FeatureStore

    def complete(self, inputs: dict, autocast: Callable[[], AbstractContextManager]) -> dict:
        """A batch with the tower's tokens (N, P, D) of all media as `pixel_values`.

        What was not stored the tower sees now, as the model's own call would (under `autocast`), and the
        store keeps it. Batches without media pass as they are.
        """
        if "stored_media" not in inputs:
            return inputs
        inputs = dict(inputs)
        media, pixels = inputs.pop("stored_media"), inputs.pop("pixel_values")
        sources = {True: inputs.pop("tower_tokens", None), False: self._see(pixels, autocast)}
        used, parts, frame = {True: 0, False: 0}, [], 0
        for key, frames, is_stored in media:
            tokens_NPD = sources[is_stored][used[is_stored] : used[is_stored] + frames]
            if not is_stored:
                times_N = inputs["frame_times"][frame : frame + frames]
                self.store.keep(key, Seen(tokens_NPD, times_N))
            used[is_stored] += frames
            frame += frames
            parts.append(tokens_NPD)
        return {**inputs, "pixel_values": torch.cat(parts)}

    @torch.no_grad()
    def _see(self, pixels_N3SS: Tensor, autocast) -> Tensor | None:
        if not len(pixels_N3SS):
            return None
        with autocast():
            return self.tower(pixels_N3SS)
