"""The 3D resampler: learned queries attend to all patches of a cube. As published, after MiniCPM-V's.

Letters: N frames of all media, C cubes, P patches (g x g), Q queries, H heads, K channels of a head, D width.

One attention serves all cubes of a batch, without padding. Three facts make it cheap and exact:
- The queries do not depend on the input, so the key projection is applied to them: no tensor of keys exists.
- A position is [time | row | column], each on its own channels: its part of a score is three small tables.
- A softmax over a cube is a mean of the softmaxes over its frames, weighted by their sums of exponentials.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quicksviewer.model.config import ResamplerConfig
from quicksviewer.model.multimodal_resampler.base import Resampler, sum_by_cube
from quicksviewer.model.multimodal_resampler.positions import axis_widths, sin_cos

EPS = 1e-6
INFERENCE_FRAMES = 64
"""Frames at a time when nothing is recorded for a backward pass: bounds memory, changes nothing else."""


class CubeAttention(nn.Module):
    """Attention of shared queries to the patches of each cube; weights named as in nn.MultiheadAttention."""

    def __init__(self, width: int, num_heads: int, grid: int):
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, query_QD: Tensor, kv_NPD: Tensor, cube_of_frame_N: Tensor, num_cubes: int, times_N: Tensor
    ) -> Tensor:
        """What the queries read from each cube: (num_cubes, Q, D). Only keys hold positions, not values."""
        weight_q, weight_k, weight_v = self.in_proj_weight.chunk(3)
        bias_q, _, bias_v = self.in_proj_bias.chunk(3)  # a key bias shifts all scores of a query: no effect
        query_QHK = F.linear(query_QD, weight_q, bias_q).unflatten(1, (self.num_heads, -1))
        weight_k_HKD = weight_k.unflatten(0, (self.num_heads, -1)) / math.sqrt(query_QHK.shape[-1])
        query_HQD = torch.einsum("qhk,hkd->hqd", query_QHK, weight_k_HKD)
        time_NHQ, plane_HQP = self.position_scores(query_HQD.float(), times_N)
        chunk = len(kv_NPD) if torch.is_grad_enabled() else INFERENCE_FRAMES
        read = [self.read_frames(query_HQD, kv, weight_v, bias_v, plane_HQP) for kv in kv_NPD.split(chunk)]
        values_NHQK, log_sum_NHQ = (torch.cat(parts) for parts in zip(*read, strict=True))
        merged_CHQK = merge_frames(values_NHQK, log_sum_NHQ + time_NHQ, cube_of_frame_N, num_cubes)
        return self.out_proj(merged_CHQK.transpose(1, 2).flatten(2).to(kv_NPD.dtype))

    def position_scores(self, query_HQD: Tensor, times_N: Tensor) -> tuple[Tensor, Tensor]:
        """What positions add to the scores: of each frame (N, H, Q), and of each patch (H, Q, P); float32."""
        with torch.autocast(query_HQD.device.type, enabled=False):
            widths = axis_widths(query_HQD.shape[-1])
            time_HQd, row_HQd, column_HQd = query_HQD.split(widths, dim=-1)
            table_gd = sin_cos(torch.arange(self.grid, device=query_HQD.device), widths[1])
            row_HQg, column_HQg = row_HQd @ table_gd.T, column_HQd @ table_gd.T
            plane_HQP = (row_HQg[..., :, None] + column_HQg[..., None, :]).flatten(2)
            time_NHQ = torch.einsum("nd,hqd->nhq", sin_cos(times_N, widths[0]), time_HQd)
        return time_NHQ, plane_HQP

    def read_frames(
        self, query_HQD: Tensor, kv_NPD: Tensor, weight_v: Tensor, bias_v: Tensor, plane_HQP: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attention to each frame alone: values (N, H, Q, K) and the log-sum-exp of its scores (N, H, Q)."""
        value_NPHK = F.linear(kv_NPD, weight_v, bias_v).unflatten(2, (self.num_heads, -1))
        flat_SD = query_HQD.flatten(0, 1).to(kv_NPD.dtype)
        scores_NHQP = (flat_SD @ kv_NPD.transpose(1, 2)).unflatten(1, query_HQD.shape[:2]).float() + plane_HQP
        top_NHQ1 = scores_NHQP.detach().amax(dim=-1, keepdim=True)
        parts_NHQP = (scores_NHQP - top_NHQ1).exp()
        sum_NHQ1 = parts_NHQP.sum(dim=-1, keepdim=True)
        read_NHQK = parts_NHQP.to(value_NPHK.dtype) @ value_NPHK.transpose(1, 2)
        return read_NHQK.float() / sum_NHQ1, (sum_NHQ1.log() + top_NHQ1).squeeze(-1)


def merge_frames(values_NHQK: Tensor, log_sum_NHQ: Tensor, cube_of_frame_N: Tensor, num_cubes: int) -> Tensor:
    """Mean of a cube's frames, weighted by their sums of exponentials: (num_cubes, H, Q, K) float32."""
    index = cube_of_frame_N.view(-1, 1, 1).expand_as(log_sum_NHQ)
    top_CHQ = log_sum_NHQ.new_full((num_cubes, *log_sum_NHQ.shape[1:]), -torch.inf)
    top_CHQ = top_CHQ.scatter_reduce(0, index, log_sum_NHQ.detach(), "amax")
    weight_NHQ = (log_sum_NHQ - top_CHQ[cube_of_frame_N]).exp()
    total_CHQK = sum_by_cube(weight_NHQ[..., None] * values_NHQK, cube_of_frame_N, num_cubes)
    return total_CHQK / sum_by_cube(weight_NHQ, cube_of_frame_N, num_cubes)[..., None]


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
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(lm_width, eps=EPS) for _ in range(3))
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

    def forward(self, tokens_NPD: Tensor, cube_of_frame_N: Tensor, num_cubes: int, times_N: Tensor) -> Tensor:
        """See `Resampler.forward`."""
        kv_NPD = self.ln_kv(self.kv_proj(tokens_NPD))
        read_CQD = self.attn(self.ln_q(self.query), kv_NPD, cube_of_frame_N, num_cubes, times_N)
        return self.ln_post(read_CQD) @ self.proj
