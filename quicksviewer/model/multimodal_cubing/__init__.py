"""Cubing: cut a video into cubes, runs of frames that tell the same thing."""

from quicksviewer.model.multimodal_cubing.base import Cubing, Cuts
from quicksviewer.model.multimodal_cubing.builder import CUBINGS, build_cubing
from quicksviewer.model.multimodal_cubing.pool import Thumbnail, pool_frames

__all__ = ["CUBINGS", "Cubing", "Cuts", "Thumbnail", "build_cubing", "pool_frames"]
