"""Mean over the frames of a cube, then over neighbouring patches."""

import math

import torch.nn.functional as F
from torch import Tensor

from quicksviewer.model.config import ResamplerConfig
from quicksviewer.model.multimodal_resampler.base import Resampler, mean_by_cube


class SpatialPoolResampler(Resampler):
    """sqrt(Q) x sqrt(Q) tokens of the tower's width. Blind to the order of frames."""

    def __init__(self, config: ResamplerConfig, vision_width: int, lm_width: int, num_patches: int):
        super().__init__()
        self.num_tokens, self.out_width = config.queries, vision_width
        self.grid, self.side = math.isqrt(num_patches), math.isqrt(config.queries)
        if self.side > self.grid:
            raise ValueError(f"cannot pool {num_patches} patches to {config.queries} tokens")

    def forward(
        self, tokens_NPD: Tensor, cube_of_frame_N: Tensor, num_cubes: int, times_N: Tensor, share_N3=None
    ) -> Tensor:
        """See `Resampler.forward`."""
        mean_CPD = mean_by_cube(tokens_NPD, cube_of_frame_N, num_cubes, share_N3)
        grid_CDgg = mean_CPD.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        pooled_CDss = F.adaptive_avg_pool2d(grid_CDgg, self.side)
        return pooled_CDss.flatten(2).transpose(1, 2).to(tokens_NPD.dtype)
