"""Which resampler a config names."""

from quicksviewer.model.config import ResamplerConfig
from quicksviewer.model.multimodal_encoder.base import VisionTower
from quicksviewer.model.multimodal_resampler.base import Resampler
from quicksviewer.model.multimodal_resampler.identity import IdentityResampler
from quicksviewer.model.multimodal_resampler.perceiver import PerceiverResampler
from quicksviewer.model.multimodal_resampler.pool import SpatialPoolResampler
from quicksviewer.utils.registry import lookup

RESAMPLERS: dict[str, type[Resampler]] = {
    "perceiver": PerceiverResampler,
    "spatial_pool": SpatialPoolResampler,
    "identity": IdentityResampler,
}


def build_resampler(config: ResamplerConfig, tower: VisionTower, lm_width: int) -> Resampler:
    """The resampler of `config.kind` for what the tower gives and the language model takes."""
    kind = lookup(RESAMPLERS, config.kind, "resampler")
    return kind(config, tower.hidden_size, lm_width, tower.num_patches)
