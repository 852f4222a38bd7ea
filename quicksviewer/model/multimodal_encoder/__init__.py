"""Vision towers: from pixels to patch tokens."""

from quicksviewer.model.multimodal_encoder.base import VisionTower
from quicksviewer.model.multimodal_encoder.builder import TOWERS, build_tower

__all__ = ["TOWERS", "VisionTower", "build_tower"]
