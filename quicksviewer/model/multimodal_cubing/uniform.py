"""Equal pieces: the baseline that a learned cut has to beat at the same number of tokens."""

from itertools import accumulate

import torch
from torch import Tensor

from quicksviewer.model.multimodal_cubing.base import Cubing, Cuts, to_device


class UniformCubing(Cubing):
    """Cube i of K begins at frame floor(i N / K). No weights, no noise."""

    def forward(
        self,
        pooled_ND: Tensor,
        frames: list[int],
        is_video: list[bool],
        noise_weight: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Cuts:
        """See `Cubing.forward`; only the counts matter."""
        cubes = self.cubes_of(frames, is_video)
        starts = accumulate([0, *frames[:-1]])
        first = [s + i * n // k for s, n, k in zip(starts, frames, cubes, strict=True) for i in range(k)]
        mask_N = torch.zeros(sum(frames), device=pooled_ND.device)
        return Cuts.from_mask(mask_N.index_fill_(0, to_device(first, mask_N.device), 1.0), cubes)
