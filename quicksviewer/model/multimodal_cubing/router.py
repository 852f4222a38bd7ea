"""Dynamic chunking, after H-Net (Hwang, Wang, Gu, 2025): a cube opens where neighbours point elsewhere.

The probability of a cut is half the cosine distance of two learned projections of neighbouring frames. A cube
says p of its own and 1 - p of the cube before it, where p is the probability of the cut that opens it, so
every cube's tokens carry a gradient to the router, without noise. The ratio loss pulls the share of
probabilities above one half to the planned share of cuts.

H-Net's count follows the content. Here a sequence's length must be known before a frame is decoded, so a
video opens exactly as many cubes as planned, the most probable ones. What adapts is what they hold: a cube
opened with a small probability repeats the one before. Letters as in `momentum`.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing.base import Cubing, Cuts, GatedFrames, straight_through, to_device

RATIO_WEIGHT = 30.0
"""Of the ratio loss in the penalty: with the usual `aux_weight` of 0.001 it has H-Net's weight of 0.03."""
MOST_SHARE = 0.9
"""Planned share of cuts beyond which the ratio loss steers no further: with every frame a cut it ends."""
LEAST_PROBABILITY = 1e-4
"""Keeps log odds and their gradients finite."""


class Project(nn.Linear):
    """A square projection that computes in float32 and starts as the identity."""

    def __init__(self, width: int):
        super().__init__(width, width, bias=False)

    def reset_parameters(self) -> None:
        nn.init.eye_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float())


class RouterCubing(Cubing):
    """Cuts by the dissimilarity of projected neighbours; untrained it is `change_point`."""

    def __init__(self, config: CubingConfig, vision_width: int):
        super().__init__(config, vision_width)
        self.before_fn, self.after_fn = Project(vision_width), Project(vision_width)

    def cut(self, pooled_ND, gated: GatedFrames, cubes, cuts, noise_weight: float, generator) -> Cuts:
        """See `Cubing.cut`. There is no noise; `gate_logits` differ by the log odds of a cut."""
        frames = len(pooled_ND)
        before_GD = self.before_fn(pooled_ND[gated.frame_G - 1])
        after_GD = self.after_fn(pooled_ND[gated.frame_G])
        cut_G = (1 - F.cosine_similarity(before_GD, after_GD, dim=-1)) / 2
        cut_G = cut_G.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        odds_G = cut_G.logit()
        hard_G = self.choose(odds_G.detach(), gated, cuts).float()
        mask_N = gated.mask(straight_through(hard_G, cut_G), frames)
        logits_G2 = torch.stack([-odds_G / 2, odds_G / 2], dim=1)
        plain = Cuts.from_mask(mask_N, cubes, logits_G2, opens_N=gated.mask(hard_G, frames))
        confidence_C = gated.mask(cut_G, frames)[plain.first_frame]
        penalty = RATIO_WEIGHT * ratio_loss(cut_G, gated, to_device(cuts, cut_G.device))
        return replace(plain, confidence=confidence_C, ratio_loss=penalty)


def ratio_loss(cut_G: Tensor, gated: GatedFrames, cuts_V: Tensor) -> Tensor:
    """H-Net's ratio loss of each video times its gated frames, summed. 1 per frame at the planned share.

    F is the share of probabilities above one half, G their mean, 1 / R the planned share of cuts: the loss is
    R / (R - 1) ((R - 1) F G + (1 - F) (1 - G)).
    """
    gates_V = gated.lengths_V - 1
    above_V = gated.total((cut_G > 0.5).float()) / gates_V
    mean_V = gated.total(cut_G) / gates_V
    share_V = (cuts_V.clamp_min(1) / gates_V).clamp_max(MOST_SHARE)
    rest_V = 1 / share_V - 1
    loss_V = (rest_V * above_V * mean_V + (1 - above_V) * (1 - mean_V)) * (1 + 1 / rest_V)
    return (loss_V * gates_V).sum()


def smooth_cubes(tokens_CQD: Tensor, confidence_C: Tensor) -> Tensor:
    """y_c = p_c x_c + (1 - p_c) y_{c-1}: (C, Q, D). The first cube of a medium has confidence 1.

    A scan by doubling: after k rounds a cube has heard of the 2^k before it.
    """
    own_C11 = confidence_C.float()[:, None, None]
    total, carry = own_C11 * tokens_CQD.float(), 1 - own_C11
    span = 1
    while span < len(total):
        reach = F.pad(total[:-span], (0, 0, 0, 0, span, 0))
        total = total + carry * reach
        carry = carry * F.pad(carry[:-span], (0, 0, 0, 0, span, 0))
        span *= 2
    return total.to(tokens_CQD.dtype)
