"""Positions of patches in time and in the plane: fixed sines and cosines, one small table per axis.

An axis has its own channels, so the position of a patch is [time | row | column] side by side, and no table
over all three axes is ever needed. As published: 2/8 of the channels for time, 3/8 each for row and column.
"""

import torch
from torch import Tensor

BASE = 10_000.0


def axis_widths(width: int) -> tuple[int, int, int]:
    """Channels for time, row, column. Every part is even; ValueError for an odd width."""
    if width % 2:
        raise ValueError(f"positions need an even width, got {width}")
    plane = width * 3 // 8 // 2 * 2
    return width - 2 * plane, plane, plane


def sin_cos(places_N: Tensor, width: int) -> Tensor:
    """[sin | cos] of the places at frequencies from 1 down to nearly 1 / BASE: (N, width) float32."""
    half = width // 2
    # float64: at 100,000 s a float32 product would be off by a hundredth of a turn
    steps = torch.arange(half, device=places_N.device, dtype=torch.float64)
    angles = places_N.double()[:, None] * BASE ** (-steps / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
