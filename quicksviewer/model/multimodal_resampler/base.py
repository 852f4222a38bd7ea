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


def sum_by_cube(values_N: Tensor, cube_of_frame_N: Tensor, num_cubes: int) -> Tensor:
    """Sum over the frames of each cube, in float32: (num_cubes, ...)."""
    total = values_N.new_zeros(num_cubes, *values_N.shape[1:], dtype=torch.float32)
    return total.index_add(0, cube_of_frame_N, values_N.float())


def mean_by_cube(values_N: Tensor, cube_of_frame_N: Tensor, num_cubes: int) -> Tensor:
    """Mean over the frames of each cube, in float32: (num_cubes, ...)."""
    frames_C = sum_by_cube(torch.ones_like(cube_of_frame_N), cube_of_frame_N, num_cubes)
    total = sum_by_cube(values_N, cube_of_frame_N, num_cubes)
    return total / frames_C.view(-1, *[1] * (total.ndim - 1))
