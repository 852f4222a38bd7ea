"""Cuts without parameters: where the cosine distance of neighbouring frames is largest."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quicksviewer.model.multimodal_cubing.base import Cubing, Cuts, GatedFrames


class ScoredCubing(Cubing):
    """Cuts at the best scores of a function of the frames. No weights, no noise."""

    def forward(
        self,
        pooled_ND: Tensor,
        frames: list[int],
        is_video: list[bool],
        noise_weight: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Cuts:
        """See `Cubing.forward`; nothing has a gradient."""
        cubes = self.cubes_of(frames, is_video)
        gated = GatedFrames.of(frames, is_video, pooled_ND.device)
        mask_N = torch.ones(sum(frames), device=pooled_ND.device)
        if gated is not None:
            cuts = [k - 1 for k, n, v in zip(cubes, frames, is_video, strict=True) if v and n > 1]
            with torch.no_grad(), torch.autocast(pooled_ND.device.type, enabled=False):
                mask_N = gated.mask(self.cuts(pooled_ND.float(), gated, cuts).float(), sum(frames))
        return Cuts.from_mask(mask_N, cubes)

    def cuts(self, pooled_ND: Tensor, gated: GatedFrames, cuts: list[int]) -> Tensor:
        """Which gated frames open a cube: (G,) bool, `cuts` of each video."""
        raise NotImplementedError


class ChangePointCubing(ScoredCubing):
    """The k largest cosine distances of neighbours, as training-free compressors cut (FastVID, for one)."""

    def cuts(self, pooled_ND: Tensor, gated: GatedFrames, cuts: list[int]) -> Tensor:
        """See `ScoredCubing.cuts`."""
        before_GD, after_GD = pooled_ND[gated.frame_G - 1], pooled_ND[gated.frame_G]
        return self.choose(1 - F.cosine_similarity(before_GD, after_GD, dim=-1), gated, cuts)
