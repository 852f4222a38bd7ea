"""Cuts without parameters: where the cosine distance of neighbouring frames is largest."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quicksviewer.model.multimodal_cubing.base import Cubing, Cuts, GatedFrames


class ScoredCubing(Cubing):
    """Cuts at the best scores of a function of the frames. No weights, no noise."""

    @torch.no_grad()
    def cut(self, pooled_ND, gated: GatedFrames, cubes, cuts, noise_weight: float, generator) -> Cuts:
        """See `Cubing.cut`; nothing has a gradient."""
        opens_G = self.cuts(pooled_ND, gated, cuts).float()
        return Cuts.from_mask(gated.mask(opens_G, len(pooled_ND)), cubes)

    def cuts(self, pooled_ND: Tensor, gated: GatedFrames, cuts: list[int]) -> Tensor:
        """Which gated frames open a cube: (G,) bool, `cuts` of each video."""
        raise NotImplementedError


class ChangePointCubing(ScoredCubing):
    """The k largest cosine distances of neighbours, as training-free compressors cut (FastVID, for one)."""

    def cuts(self, pooled_ND: Tensor, gated: GatedFrames, cuts: list[int]) -> Tensor:
        """See `ScoredCubing.cuts`."""
        before_GD, after_GD = pooled_ND[gated.frame_G - 1], pooled_ND[gated.frame_G]
        return self.choose(1 - F.cosine_similarity(before_GD, after_GD, dim=-1), gated, cuts)
