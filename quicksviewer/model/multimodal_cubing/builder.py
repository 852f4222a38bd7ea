"""Which cubing a config names."""

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing.base import Cubing
from quicksviewer.model.multimodal_cubing.change_point import ChangePointCubing
from quicksviewer.model.multimodal_cubing.estimators import (
    CumulativeCubing,
    ReinMaxCubing,
    SoftCubing,
    SubsetCubing,
)
from quicksviewer.model.multimodal_cubing.momentum import MomentumCubing
from quicksviewer.model.multimodal_cubing.optimal import OptimalCubing
from quicksviewer.model.multimodal_cubing.router import RouterCubing
from quicksviewer.model.multimodal_cubing.uniform import UniformCubing
from quicksviewer.utils.registry import lookup

CUBINGS: dict[str, type[Cubing]] = {
    "momentum": MomentumCubing,
    "cumulative": CumulativeCubing,
    "reinmax": ReinMaxCubing,
    "subset": SubsetCubing,
    "soft": SoftCubing,
    "router": RouterCubing,
    "uniform": UniformCubing,
    "change_point": ChangePointCubing,
    "optimal": OptimalCubing,
}
"""Those that learn, and the yardsticks."""


def build_cubing(config: CubingConfig, vision_width: int) -> Cubing:
    """The cubing of `config.kind` for frames of that width."""
    return lookup(CUBINGS, config.kind, "cubing")(config, vision_width)
