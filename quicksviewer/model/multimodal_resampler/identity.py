"""Every patch of a cube stays: the mean over its frames."""

from torch import Tensor

from quicksviewer.model.config import ResamplerConfig
from quicksviewer.model.multimodal_resampler.base import Resampler, mean_by_cube


class IdentityResampler(Resampler):
    """One token per patch, of the tower's width. Blind to the order of frames."""

    def __init__(self, config: ResamplerConfig, vision_width: int, lm_width: int, num_patches: int):
        super().__init__()
        self.num_tokens, self.out_width = num_patches, vision_width

    def forward(
        self, tokens_NPD: Tensor, cube_of_frame_N: Tensor, num_cubes: int, times_N: Tensor, share_N3=None
    ) -> Tensor:
        """See `Resampler.forward`."""
        return mean_by_cube(tokens_NPD, cube_of_frame_N, num_cubes, share_N3).to(tokens_NPD.dtype)
