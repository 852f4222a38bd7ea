"""SigLIP: every token is a patch, and the last LayerNorm is part of the road of the patch tokens."""

from torch import Tensor, nn
from transformers import SiglipVisionModel

from quicksviewer.model.multimodal_encoder.base import VisionTower


class SiglipTower(VisionTower):
    """A SigLIP vision transformer without its pooling head."""

    MODEL = SiglipVisionModel
    MEAN = STD = (0.5, 0.5, 0.5)

    def adapt(self, vision: nn.Module) -> nn.Module:
        """See `VisionTower.adapt`."""
        if not self.config.post_layernorm:
            vision.post_layernorm = nn.Identity()
        return vision

    def patch_tokens(self, pixels_N3HW: Tensor) -> Tensor:
        """See `VisionTower.patch_tokens`."""
        return self.vision(pixels_N3HW).last_hidden_state
