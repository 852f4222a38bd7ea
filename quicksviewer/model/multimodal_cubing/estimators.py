"""Other gradients for the gate of `momentum`: rows of the table of cubings, with its weights and its cuts.

All make hard cuts at inference, as many as `momentum`. In training their gradients come from the thumbnail
and from what every cube says: a frame has a share in the cube before its own and in the one after, which the
resampler adds to its attention as a bias. Moving one cut moves the frames between by one cube, so these
neighbours hold all that a single move can change. Letters as in `momentum`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quicksviewer.model.multimodal_cubing.base import Draw, GatedFrames, straight_through, to_device
from quicksviewer.model.multimodal_cubing.momentum import MomentumCubing
from quicksviewer.model.multimodal_cubing.subsets import NEVER, Subsets

LEAST_SHARE = 1e-6
"""No cube may be without any share: its tokens would be a mean of nothing."""


def own_cube(num_frames: int, like: Tensor) -> Tensor:
    """Shares of frames that belong to one cube each: (N, 3)."""
    return like.new_tensor([0.0, 1.0, 0.0]).expand(num_frames, 3)


class CumulativeCubing(MomentumCubing):
    """As `momentum`, but the running sum of the mask also moves frames between cubes.

    A frame's cube is the number of cuts up to it. To first order a growing sum moves it on, a shrinking one
    back: the central difference over its two neighbours.
    """

    reads_shares = True

    def shares(self, draw: Draw, gated: GatedFrames, mask_N: Tensor) -> Tensor:
        moved_VT = gated.rows(draw.soft_G - draw.soft_G.detach(), 0.0).cumsum(dim=1)
        cube_VT = gated.rows(draw.hard_G, 0.0).cumsum(dim=1)
        sides_VT3 = torch.stack(
            [-(cube_VT > 0).float(), 0 * cube_VT, (cube_VT < cube_VT[:, -1:]).float()], dim=2
        )
        step_G3 = (moved_VT[..., None] * sides_VT3 / 2)[gated.video_G, gated.place_G]
        own_N3 = own_cube(len(mask_N), mask_N)
        return own_N3.index_put((gated.frame_G,), own_N3[gated.frame_G] + step_G3)


class ReinMaxCubing(CumulativeCubing):
    """The second-order correction of ReinMax (Liu et al., 2023): Heun's method between sample and mean."""

    def draw(self, logits_G2, gated: GatedFrames, cuts: list[int], noise_weight: float, generator) -> Draw:
        hard_G = super().draw(logits_G2, gated, cuts, noise_weight, generator).hard_G
        odds_G = self.odds(logits_G2)
        mean_G = odds_G.detach().sigmoid()
        middle_G = (mean_G + hard_G) / 2
        slope_G = 2 * middle_G * (1 - middle_G) - mean_G * (1 - mean_G) / 2
        return Draw(hard_G, slope_G * odds_G, odds_G)


class SubsetCubing(MomentumCubing):
    """Exactly k cuts, drawn from and differentiated through their distribution (SIMPLE, Ahmed et al., 2023).

    Noise of weight w draws at w times the temperature; without noise the most probable cuts are taken.
    """

    reads_shares = True

    def draw(self, logits_G2, gated: GatedFrames, cuts: list[int], noise_weight: float, generator) -> Draw:
        if not self.training:
            return super().draw(logits_G2, gated, cuts, noise_weight, generator)
        odds_G = self.odds(logits_G2)
        subsets, score_G = self.subsets(odds_G, gated, cuts), odds_G.detach()
        if noise_weight > 0:
            drawn_VT = self.subsets(score_G / noise_weight, gated, cuts).sample(generator)
            # drawn frames before all others, so that only the limits of cube lengths can move a cut
            score_G = score_G.tanh() + 4.0 * drawn_VT[gated.video_G, gated.place_G]
        hard_G = self.choose(score_G, gated, cuts).float()
        return Draw(hard_G, subsets.marginals()[gated.video_G, gated.place_G], odds_G, subsets)

    def subsets(self, odds_G: Tensor, gated: GatedFrames, cuts: list[int]) -> Subsets:
        return Subsets(gated.rows(odds_G, NEVER), to_device(cuts, odds_G.device), max(cuts))

    def shares(self, draw: Draw, gated: GatedFrames, mask_N: Tensor) -> Tensor:
        return straight_through(own_cube(len(mask_N), mask_N), membership(draw, gated, mask_N))


class SoftCubing(SubsetCubing):
    """As `subset`, but training reads cubes and thumbnail with the probabilities themselves, without noise.

    A frame's own cube is then the rounded mean of its cube's number. Inference is hard, as everywhere.
    """

    def draw(self, logits_G2, gated: GatedFrames, cuts: list[int], noise_weight: float, generator) -> Draw:
        drawn = super().draw(logits_G2, gated, cuts, 0.0, generator)
        if not self.training:
            return drawn
        number_VT = gated.rows(drawn.soft_G.detach(), 0.0).double().cumsum(dim=1).round()
        opens_VT = number_VT.diff(dim=1, prepend=torch.zeros_like(number_VT[:, :1])).clamp_max(1.0)
        score_G = opens_VT[gated.video_G, gated.place_G] * 4.0 + drawn.odds_G.detach().tanh()
        hard_G = self.choose(score_G.float(), gated, cuts).float()
        return Draw(hard_G, drawn.soft_G, drawn.odds_G, drawn.subsets)

    def weights(self, draw: Draw) -> Tensor:
        return draw.soft_G if self.training else super().weights(draw)

    def shares(self, draw: Draw, gated: GatedFrames, mask_N: Tensor) -> Tensor:
        return membership(draw, gated, mask_N).clamp_min(LEAST_SHARE)


def membership(draw: Draw, gated: GatedFrames, mask_N: Tensor) -> Tensor:
    """Probabilities that frames belong to the cube before the drawn one, to it, to the one after: (N, 3)."""
    drawn_VT = gated.rows(draw.hard_G, 0.0).cumsum(dim=1).long()
    near_VT3 = drawn_VT[..., None] + torch.arange(3, device=drawn_VT.device)
    share_VT3 = F.pad(draw.subsets.counts(), (1, 1)).gather(2, near_VT3)
    share_G3 = share_VT3[gated.video_G, gated.place_G]
    return own_cube(len(mask_N), mask_N).index_put((gated.frame_G,), share_G3)
