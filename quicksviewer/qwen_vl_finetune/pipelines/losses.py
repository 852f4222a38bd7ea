"""Losses of the heads: class, heat map, and two small ones that keep the heat map quiet on real pictures.

Letters: B pictures, h x w cells of a heat map at the size of the loss.
A cell counts where the picture is (not in the letterbox), and only in pictures whose mask is known: of a fake
without a mask nobody knows which cells are forged. Targets are the forged share of a cell, so that a mask
smaller than a cell keeps its size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quicksviewer.qwen_vl_finetune.pipelines.heads import HEAT_SCALE, HeadOutput, heat_at


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights in the sum; the names of seed 001's hybrid configuration. Without a language model `lm` is
    idle."""

    lm: float = 1.0
    head_cls: float = 1.0
    head_evi: float = 2.0
    head_sparse: float = 0.001
    head_contrast: float = 0.01

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"loss weight {name} must not be negative, got {value}")


class Targets(NamedTuple):
    """Truth about B pictures of S x S pixels."""

    label_B: Tensor
    """1 fake, 0 real; int64."""
    mask_BSS: Tensor
    """1 forged, 0 not; uint8. Zero where the mask is unknown."""
    inside_BSS: Tensor
    """True where the picture is and not the letterbox; bool."""
    known_B: Tensor
    """Whether the mask says which pixels are forged; bool."""


def head_losses(output: HeadOutput, targets: Targets, evi_alpha: float) -> dict[str, Tensor]:
    """Scalars cls, evi, sparse, contrast, unweighted.

    evi       alpha x binary cross-entropy + (1 - alpha) x Dice loss of the heat map
    sparse    mean heat
    contrast  mean heat of real pictures less that of fakes; 0 unless the batch has both
    """
    height, width = (side * HEAT_SCALE for side in output.heat_logits_BHW.shape[1:])
    logits_Bhw = heat_at(output.heat_logits_BHW, height, width)
    share_Bhw = cell_share(targets.mask_BSS, height, width)
    inside_Bhw = (cell_share(targets.inside_BSS, height, width) >= 0.5).float()
    counted_Bhw = inside_Bhw * targets.known_B[:, None, None]
    heat_B = masked_mean(logits_Bhw.sigmoid(), inside_Bhw)
    is_fake_B = targets.label_B == 1
    both = is_fake_B.any() & (~is_fake_B).any()
    contrast = masked_mean(heat_B, (~is_fake_B).float(), 0) - masked_mean(heat_B, is_fake_B.float(), 0)
    return {
        "cls": F.binary_cross_entropy_with_logits(output.class_logit_B, targets.label_B.float()),
        "evi": evidence_loss(logits_Bhw, share_Bhw, counted_Bhw, evi_alpha),
        "sparse": heat_B.mean(),
        "contrast": torch.where(both, contrast, contrast * 0),
    }


def evidence_loss(logits_Bhw: Tensor, share_Bhw: Tensor, counted_Bhw: Tensor, alpha: float) -> Tensor:
    """alpha x BCE over all counted cells + (1 - alpha) x Dice loss, the mean over pictures with counted
    cells."""
    each = F.binary_cross_entropy_with_logits(logits_Bhw, share_Bhw, reduction="none")
    cross_entropy = (each * counted_Bhw).sum() / counted_Bhw.sum().clamp(min=1)
    heat_Bhw = logits_Bhw.sigmoid() * counted_Bhw
    common_B = 2 * (heat_Bhw * share_Bhw).sum(dim=(1, 2)) + 1
    whole_B = heat_Bhw.sum(dim=(1, 2)) + (share_Bhw * counted_Bhw).sum(dim=(1, 2)) + 1
    has_cells_B = (counted_Bhw.sum(dim=(1, 2)) > 0).float()
    dice = ((1 - common_B / whole_B) * has_cells_B).sum() / has_cells_B.sum().clamp(min=1)
    return alpha * cross_entropy + (1 - alpha) * dice


def weighted_sum(losses: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The sum that is trained. `losses` has the keys of `head_losses`, and `lm` where there is one."""
    weight_of = {
        "lm": weights.lm,
        "cls": weights.head_cls,
        "evi": weights.head_evi,
        "sparse": weights.head_sparse,
        "contrast": weights.head_contrast,
    }
    return sum(weight_of[name] * loss for name, loss in losses.items())


def cell_share(mask_BSS: Tensor, height: int, width: int) -> Tensor:
    """The share of each cell's pixels that a mask covers: (B, height, width) float32."""
    return F.adaptive_avg_pool2d(mask_BSS.float(), (height, width))


def masked_mean(values: Tensor, weight: Tensor, keep_dims: int = 1) -> Tensor:
    """Mean of `values` where `weight` is 1, over all dimensions but the first `keep_dims`; 0 where it is
    nowhere."""
    dims = tuple(range(keep_dims, values.dim()))
    return (values * weight).sum(dim=dims) / weight.sum(dim=dims).clamp(min=1)
