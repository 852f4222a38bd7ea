"""What is put on the vision tower: one feature map fused of several blocks, a class and a heat map read
off it.

Letters: B pictures, L tapped blocks, C width of the tower, F fused width, H x W patches of a picture.
The heads compute in float32, whatever the tower does.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAT_SCALE = 2
"""Heat maps are compared with masks at this many cells per patch and side, in every task."""


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Shape of the heads; it is stored beside their weights."""

    levels: int
    """Tapped blocks."""
    tower_width: int
    fused_width: int = 512
    hidden_width: int = 256
    """Inside the classification head and the heat-map head."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class HeadOutput(NamedTuple):
    """What the heads say of B pictures, float32."""

    class_logit_B: Tensor
    """Above 0: fake."""
    heat_logits_BHW: Tensor
    """Of each patch, above 0: forged."""
    pooled_BF: Tensor


class Fuser(nn.Module):
    """Maps of several blocks (B, L, C, H, W) -> one map (B, F, H, W)."""

    def __init__(self, config: HeadsConfig):
        super().__init__()
        wide = config.levels * config.fused_width
        self.level = nn.ModuleList(
            nn.Conv2d(config.tower_width, config.fused_width, 1) for _ in range(config.levels)
        )
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.pointwise = nn.Conv2d(wide, config.fused_width, 1)

    def forward(self, maps_BLCHW: Tensor) -> Tensor:
        # Blocks end without a norm, and their outputs differ in scale by orders of magnitude.
        even_BLCHW = F.layer_norm(maps_BLCHW.movedim(2, -1), maps_BLCHW.shape[2:3]).movedim(-1, 2)
        levels = [conv(even_BLCHW[:, place]) for place, conv in enumerate(self.level)]
        return self.pointwise(F.gelu(self.depthwise(torch.cat(levels, dim=1))))


class GeneralisedMean(nn.Module):
    """The p-mean over a map's cells, p learned: 1 is the mean, large p the maximum. arXiv 1711.02512."""

    FLOOR = 1e-6

    def __init__(self, p: float = 3.0):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))

    def forward(self, map_BFHW: Tensor) -> Tensor:
        p = self.p.clamp(min=1)
        return (map_BFHW.clamp(min=self.FLOOR) ** p).mean(dim=(2, 3)) ** (1 / p)


class ForensicHeads(nn.Module):
    """Maps of the tower -> HeadOutput."""

    def __init__(self, config: HeadsConfig):
        super().__init__()
        self.config = config
        self.fuser = Fuser(config)
        self.pool = GeneralisedMean()
        self.classifier = nn.Sequential(
            nn.Linear(config.fused_width, config.hidden_width), nn.GELU(), nn.Linear(config.hidden_width, 1)
        )
        self.heat = nn.Sequential(
            nn.Conv2d(config.fused_width, config.hidden_width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.hidden_width, 1, 1),
        )

    def forward(self, maps_BLCHW: Tensor) -> HeadOutput:
        with torch.autocast(maps_BLCHW.device.type, enabled=False):
            fused_BFHW = self.fuser(maps_BLCHW.float())
            pooled_BF = self.pool(fused_BFHW)
            return HeadOutput(
                self.classifier(pooled_BF).squeeze(1), self.heat(fused_BFHW).squeeze(1), pooled_BF
            )


def heat_at(heat_logits_BHW: Tensor, height: int, width: int) -> Tensor:
    """Heat logits at another size, bilinear: (B, height, width)."""
    maps_B1HW = heat_logits_BHW[:, None]
    return F.interpolate(maps_B1HW, (height, width), mode="bilinear", align_corners=False)[:, 0]
