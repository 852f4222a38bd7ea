"""What every resampler promises.

Letters: N frames of all media, C cubes of all media, P patches of a frame, Q tokens of a cube, D width.
"""

import torch
from torch import Tensor, nn


class Resampler(nn.Module):
    """Turns the frames of every cube into `num_tokens` tokens of width `out_width`."""

    num_tokens: int
    """Q: tokens of a cube."""
    out_width: int
    """D_out: their width."""

    def forward(
        self,
        tokens_NPD: Tensor,
        cube_of_frame_N: Tensor,
        num_cubes: int,
        times_N: Tensor,
        share_N3: Tensor | None = None,
    ) -> Tensor:
        """Tokens of all cubes: (num_cubes, Q, D_out).

        `cube_of_frame_N` (int64) counts cubes over the whole batch; `times_N` are positions in time, in
        seconds or frames (`ResamplerConfig.time_unit`); an image stands at 0. `share_N3` (float32): the share
        of each frame in the cube before its own, in its own, and in the one after; without it 0, 1, 0.
        """
        raise NotImplementedError


def neighbours(cube_of_frame_N: Tensor, num_cubes: int, share_N3: Tensor | None) -> tuple[Tensor, Tensor]:
    """Shares of the frames in cubes, and those cubes: (N, J) each. Without shares J is 1."""
    if share_N3 is None:
        own_N1 = cube_of_frame_N[:, None]
        return torch.ones_like(own_N1, dtype=torch.float32), own_N1
    step_3 = torch.arange(-1, 2, device=share_N3.device)
    return share_N3, (cube_of_frame_N[:, None] + step_3).clamp(0, num_cubes - 1)


def mean_by_cube(
    values_N: Tensor, cube_of_frame_N: Tensor, num_cubes: int, share_N3: Tensor | None = None
) -> Tensor:
    """Mean over the frames of each cube, weighted by their shares, in float32: (num_cubes, ...)."""
    total = values_N.new_zeros(num_cubes, *values_N.shape[1:], dtype=torch.float32)
    weight_C = total.new_zeros(num_cubes)
    tail = [1] * (values_N.ndim - 1)
    for share_N, cube_N in zip(
        *(t.unbind(1) for t in neighbours(cube_of_frame_N, num_cubes, share_N3)), strict=True
    ):
        total = total.index_add(0, cube_N, values_N.float() * share_N.view(-1, *tail))
        weight_C = weight_C.index_add(0, cube_N, share_N)
    return total / weight_C.view(-1, *tail)
