"""The 3D resampler: learned queries attend to all patches of a cube. As published, after MiniCPM-V's.

Letters: N frames of all media, C cubes, P patches (g x g), Q queries, H heads, S = H Q, K channels of a head,
D width of the language model, d of the tower, J cubes that a frame may belong to.

One attention serves all cubes of a batch, without padding (`reading.py`). A position is [time | row |
column], each on its own channels: its part of a score is three small tables.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quicksviewer.model.config import ResamplerConfig
from quicksviewer.model.multimodal_resampler.base import Resampler, neighbours
from quicksviewer.model.multimodal_resampler.positions import axis_widths, sin_cos
from quicksviewer.model.multimodal_resampler.reading import EPS, ReadCubes


class ScaleAndShift(nn.LayerNorm):
    """A LayerNorm whose normalisation is done elsewhere: what is left of it, a scale and a shift."""

    def forward(self, rows_dD: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled rows (d, D) and the shift (D,), float32."""
        return rows_dD * self.weight.float(), self.bias.float() * 1.0


class CubeAttention(nn.Module):
    """Attention of shared queries to the patches of each cube; weights named as in nn.MultiheadAttention."""

    def __init__(self, width: int, num_heads: int, grid: int):
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        query_QD: Tensor,
        scaled_dD: Tensor,
        shift_D: Tensor,
        tokens_NPd: Tensor,
        gram_dd: Tensor,
        share_NJ: Tensor,
        cube_NJ: Tensor,
        num_cubes: int,
        times_N: Tensor,
    ) -> Tensor:
        """What the queries read from each cube: (num_cubes, Q, D). Only keys hold positions, not values.

        A key is W_k (scaled' x / spread + shift + position), a value W_v (scaled' x / spread + shift) + b.
        """
        with torch.autocast(tokens_NPd.device.type, enabled=False):
            query_HQD, value_HKD, bias_D = self.absorb(query_QD.float(), shift_D)
            time_NHQ, plane_HQP = self.position_scores(query_HQD, times_N)
            read_CSd = ReadCubes.apply(
                tokens_NPd,
                gram_dd,
                (query_HQD @ scaled_dD.T).flatten(0, 1),
                plane_HQP.flatten(0, 1).T,
                time_NHQ.flatten(1),
                share_NJ,
                cube_NJ,
                num_cubes,
            )
            value_HdK = scaled_dD @ value_HKD.transpose(1, 2)
            read_CHQd = read_CSd.unflatten(1, query_HQD.shape[:2]).to(tokens_NPd.dtype)
            read_CHQK = read_CHQd @ value_HdK.to(tokens_NPd.dtype)
            read_CQD = read_CHQK.transpose(1, 2).flatten(2) + bias_D.to(tokens_NPd.dtype)
        return self.out_proj(read_CQD)

    def absorb(self, query_QD: Tensor, shift_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries behind W_q and W_k (H, Q, D), W_v by heads (H, K, D), what all values share (D,)."""
        weight_q, weight_k, weight_v = self.in_proj_weight.float().chunk(3)
        bias_q, _, bias_v = self.in_proj_bias.float().chunk(3)  # a key bias shifts all scores of a query
        query_HQK = F.linear(query_QD, weight_q, bias_q).unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        weight_k_HKD = weight_k.unflatten(0, (self.num_heads, -1)) / math.sqrt(query_HQK.shape[-1])
        return (
            query_HQK @ weight_k_HKD,
            weight_v.unflatten(0, (self.num_heads, -1)),
            weight_v @ shift_D + bias_v,
        )

    def position_scores(self, query_HQD: Tensor, times_N: Tensor) -> tuple[Tensor, Tensor]:
        """What positions add to the scores: of each frame (N, H, Q), and of each patch (H, Q, P); float32."""
        widths = axis_widths(query_HQD.shape[-1])
        time_HQd, row_HQd, column_HQd = query_HQD.split(widths, dim=-1)
        table_gd = sin_cos(torch.arange(self.grid, device=query_HQD.device), widths[1])
        row_HQg, column_HQg = row_HQd @ table_gd.T, column_HQd @ table_gd.T
        plane_HQP = (row_HQg[..., :, None] + column_HQg[..., None, :]).flatten(2)
        time_NHQ = torch.einsum("nd,hqd->nhq", sin_cos(times_N, widths[0]), time_HQd)
        return time_NHQ, plane_HQP


class PerceiverResampler(Resampler):
    """Q learned queries read each cube; the result is of the language model's width."""

    def __init__(self, config: ResamplerConfig, vision_width: int, lm_width: int, num_patches: int):
        super().__init__()
        grid = math.isqrt(num_patches)
        if grid**2 != num_patches:
            raise ValueError(f"the patches of a frame are a square, got {num_patches}")
        axis_widths(lm_width)  # refuses an odd width
        self.num_tokens, self.out_width, self.query_init_std = config.queries, lm_width, config.query_init_std
        self.query = nn.Parameter(torch.empty(config.queries, lm_width))
        self.kv_proj = nn.Linear(vision_width, lm_width, bias=False)
        self.attn = CubeAttention(lm_width, config.num_heads(lm_width), grid)
        self.ln_q, self.ln_post = (nn.LayerNorm(lm_width, eps=EPS) for _ in range(2))
        self.ln_kv = ScaleAndShift(lm_width, eps=EPS)
        self.proj = nn.Parameter(torch.empty(lm_width, lm_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal weights, no bias; the last matrix keeps lengths. Queries as the config says."""
        nn.init.normal_(self.query, std=self.query_init_std)
        for weight in (self.kv_proj.weight, self.attn.in_proj_weight, self.attn.out_proj.weight):
            nn.init.normal_(weight, std=0.02)
        for bias in (self.attn.in_proj_bias, self.attn.out_proj.bias):
            nn.init.zeros_(bias)
        for norm in (self.ln_q, self.ln_kv, self.ln_post):
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
        nn.init.normal_(self.proj, std=self.out_width**-0.5)

    def forward(
        self, tokens_NPd: Tensor, cube_of_frame_N: Tensor, num_cubes: int, times_N: Tensor, share_N3=None
    ) -> Tensor:
        """See `Resampler.forward`."""
        device = tokens_NPd.device.type
        if torch.is_autocast_enabled(device):
            tokens_NPd = tokens_NPd.to(torch.get_autocast_dtype(device))
        share_NJ, cube_NJ = neighbours(cube_of_frame_N, num_cubes, share_N3)
        eye_dd = torch.eye(tokens_NPd.shape[-1], device=tokens_NPd.device, dtype=self.query.dtype)
        with torch.autocast(device, enabled=False):
            # the weight itself is read by calling the layer, which gathers it under ZeRO-3
            rows_dD = self.kv_proj(eye_dd).float()
            centred_dD = rows_dD - rows_dD.mean(dim=1, keepdim=True)
            scaled_dD, shift_D = self.ln_kv(centred_dD)
            gram_dd = centred_dD @ centred_dD.T / self.out_width
        read_CQD = self.attn(
            self.ln_q(self.query),
            scaled_dD,
            shift_D,
            tokens_NPd,
            gram_dd,
            share_NJ,
            cube_NJ,
            num_cubes,
            times_N,
        )
        return self.ln_post(read_CQD) @ self.proj
