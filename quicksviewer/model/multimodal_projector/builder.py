"""Which projector a config names."""

from torch import nn

from quicksviewer.model.config import ProjectorConfig
from quicksviewer.model.multimodal_projector.mlp import Mlp


def build_projector(config: ProjectorConfig, in_width: int, out_width: int) -> nn.Module:
    """A module D_in -> D_out. ValueError where `identity` would have to change the width."""
    if config.depth == 0 and in_width != out_width:
        raise ValueError(
            f"projector identity cannot turn width {in_width} into {out_width}; use linear or mlp2x_gelu"
        )
    return Mlp(in_width, out_width, config.depth)
