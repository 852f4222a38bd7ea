"""Which tower a config names."""

from quicksviewer.model.config import TowerConfig
from quicksviewer.model.multimodal_encoder.base import VisionTower
from quicksviewer.model.multimodal_encoder.clip_encoder import ClipTower
from quicksviewer.model.multimodal_encoder.siglip_encoder import SiglipTower
from quicksviewer.utils.registry import lookup

TOWERS: dict[str, type[VisionTower]] = {"siglip": SiglipTower, "clip": ClipTower}


def build_tower(config: TowerConfig, attn_implementation: str = "sdpa") -> VisionTower:
    """The tower of `config.kind`, with random weights; see `VisionTower.load_pretrained`."""
    return lookup(TOWERS, config.kind, "vision tower")(config, attn_implementation)
