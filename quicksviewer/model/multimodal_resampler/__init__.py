"""Resamplers: from the patch tokens of a cube to Q tokens."""

from quicksviewer.model.multimodal_resampler.base import Resampler
from quicksviewer.model.multimodal_resampler.builder import RESAMPLERS, build_resampler

__all__ = ["RESAMPLERS", "Resampler", "build_resampler"]
