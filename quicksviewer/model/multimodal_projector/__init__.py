"""Projectors: from the resampler's width to the language model's."""

from quicksviewer.model.multimodal_projector.builder import build_projector
from quicksviewer.model.multimodal_projector.mlp import Mlp

__all__ = ["Mlp", "build_projector"]
