"""Samples become one padded batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.utils.batching import batch_rows, join_media, pad_rows
from quicksviewer.utils.registry import lookup

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "token": None,
    "sample": lambda targets: 1 / targets,
    "square_root": lambda targets: targets.rsqrt(),
}
"""Value of `--loss_weighting` -> weight of each token of a sample, from its number of target tokens: samples
count by their tokens, all alike, or by the square root of their tokens."""


@dataclass(frozen=True)
class DataCollatorForSupervisedDataset:
    """Rows padded on the right to the longest; labels of the padding are IGNORE_INDEX; media joined without
    padding. `groups`: names under which the loss of every sample is logged, rows first, on the host."""

    pad_id: int
    loss_weighting: str = "token"

    def __post_init__(self):
        lookup(WEIGHTINGS, self.loss_weighting, "weighting of the loss")

    def __call__(self, rows: list[dict]) -> dict:
        batch = batch_rows(rows, self.pad_id) | join_media(rows)
        for key in ("segment_ids", "position_ids"):
            if key in rows[0]:
                batch[key] = pad_rows([row[key] for row in rows], 0)
        if (weigh := WEIGHTINGS[self.loss_weighting]) is not None:
            batch["loss_weights"] = _weights(batch, weigh)
        if "groups" in rows[0]:
            batch["groups"] = [group for row in rows for group in row["groups"]]
        return batch


def sample_numbers(labels_BT: Tensor, segment_ids_BT: Tensor | None) -> Tensor:
    """Which sample of a batch a token belongs to, rows first, from 0: (B, T). Padding belongs to any."""
    if segment_ids_BT is None:
        return torch.arange(len(labels_BT), device=labels_BT.device)[:, None].expand_as(labels_BT)
    counts_B = segment_ids_BT.amax(dim=1)
    return (segment_ids_BT - 1 + (counts_B.cumsum(0) - counts_B)[:, None]).clamp(min=0)


def targets_of(labels_BT: Tensor) -> Tensor:
    """Whether a token is predicted from the one before it: bool (B, T)."""
    learned_BT = labels_BT != IGNORE_INDEX
    learned_BT[:, 0] = False
    return learned_BT


def _weights(batch: dict, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """The weight of every token, float32 (B, T); 0 where there is nothing to learn."""
    number_BT = sample_numbers(batch["labels"], batch.get("segment_ids"))
    learned_BT = targets_of(batch["labels"]).float()
    targets_S = torch.zeros(int(number_BT.max()) + 1).index_add(0, number_BT.flatten(), learned_BT.flatten())
    return weigh(targets_S.clamp(min=1))[number_BT] * learned_BT
