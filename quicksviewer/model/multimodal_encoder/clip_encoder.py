"""CLIP: a class token stands before the patches, and the last LayerNorm is meant for it alone."""

from torch import Tensor, nn
from transformers import CLIPVisionModel

from quicksviewer.model.multimodal_encoder.base import VisionTower


class ClipTower(VisionTower):
    """A CLIP vision transformer; the class token is dropped."""

    MODEL = CLIPVisionModel
    MEAN = (0.48145466, 0.4578275, 0.40821073)
    STD = (0.26862954, 0.26130258, 0.27577711)

    def adapt(self, vision: nn.Module) -> nn.Module:
        """See `VisionTower.adapt`. The class token's LayerNorm goes, unless patches are to have it."""
        if not self.config.post_layernorm:
            vision.post_layernorm = nn.Identity()
        return vision

    def patch_tokens(self, pixels_N3HW: Tensor) -> Tensor:
        """See `VisionTower.patch_tokens`."""
        return self.vision.post_layernorm(self.vision(pixels_N3HW).last_hidden_state[:, 1:])
