"""Means over patches and frames: what the gate looks at, and the picture of the whole video.

Letters: V videos, M media, N frames, P patches, g patches along a side (P = g g), Q tokens, D width.
"""

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quicksviewer.model.config import ThumbnailConfig
from quicksviewer.model.multimodal_cubing.base import to_device
from quicksviewer.utils.registry import lookup


def pool_frames(tokens_NPD: Tensor) -> Tensor:
    """Mean patch of every frame: (N, D) float32. One read of the tokens."""
    return FrameMean.apply(tokens_NPD)


class FrameMean(torch.autograd.Function):
    """The mean over patches; its gradient is a view that repeats one row per frame, not a tensor of N P D."""

    @staticmethod
    def forward(ctx, tokens_NPD: Tensor) -> Tensor:
        ctx.num_patches, ctx.dtype = tokens_NPD.shape[1], tokens_NPD.dtype
        if tokens_NPD.device.type == "cpu" and tokens_NPD.dtype == torch.float32:
            # on CPU a product with a row of ones reads memory twice as fast as a sum over the middle axis
            share_1P = tokens_NPD.new_full((1, ctx.num_patches), 1 / ctx.num_patches)
            return (share_1P @ tokens_NPD).squeeze(1)
        return tokens_NPD.mean(dim=1, dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad_ND: Tensor) -> Tensor:
        row_N1D = (grad_ND / ctx.num_patches).to(ctx.dtype).unsqueeze(1)
        return row_N1D.expand(-1, ctx.num_patches, -1)


class GridPool(nn.Module):
    """Joins neighbours in the plane: (N, P, D) -> (N, Q, D). P and Q must be squares."""

    def __init__(self, num_tokens: int):
        super().__init__()
        self.side = math.isqrt(num_tokens)
        if self.side**2 != num_tokens:
            raise ValueError(f"a grid of tokens is a square, got {num_tokens}")

    def forward(self, tokens_NPD: Tensor) -> Tensor:
        grid = math.isqrt(tokens_NPD.shape[1])
        image_NDgg = tokens_NPD.transpose(1, 2).unflatten(2, (grid, grid))
        return F.adaptive_avg_pool2d(image_NDgg, self.side).flatten(2).transpose(1, 2)


class RunPool(nn.Module):
    """Joins runs of consecutive tokens, which straddle rows, as published: (N, P, D) -> (N, Q, D)."""

    def __init__(self, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens

    def forward(self, tokens_NPD: Tensor) -> Tensor:
        return tokens_NPD.unflatten(1, (self.num_tokens, -1)).mean(dim=2)


POOLINGS: dict[str, type[nn.Module]] = {"grid": GridPool, "runs": RunPool}


class Thumbnail(nn.Module):
    """The mean of the frames that open a cube, pooled to Q tokens. The gate learns through its mask."""

    def __init__(self, config: ThumbnailConfig, vision_width: int, lm_width: int, num_tokens: int):
        super().__init__()
        pool = lookup(POOLINGS, config.pooling, "thumbnail pooling")(num_tokens)
        self.thumbnail_fn = nn.Sequential(pool, nn.Linear(vision_width, lm_width))
        self.num_tokens = num_tokens
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal weights, no bias."""
        nn.init.normal_(self.thumbnail_fn[1].weight, std=0.02)
        nn.init.zeros_(self.thumbnail_fn[1].bias)

    def forward(self, tokens_NPD: Tensor, mask_N: Tensor, frames: list[int], is_video: list[bool]) -> Tensor:
        """Thumbnails of the videos among the media: (V, Q, lm width). Images have none."""
        pool, to_lm = self.thumbnail_fn
        starts = accumulate([0, *frames[:-1]])
        videos = [(s, n) for s, n, v in zip(starts, frames, is_video, strict=True) if v]
        frame_N = to_device([s + t for s, n in videos for t in range(n)], mask_N.device)
        video_N = to_device([i for i, (_, n) in enumerate(videos) for _ in range(n)], mask_N.device)
        weight_N = mask_N[frame_N].float()
        # pooling and mean commute; pooled frames are the smaller thing to weigh
        pooled_NQD = pool(tokens_NPD)
        weighted_NQD = pooled_NQD[frame_N].float() * weight_N[:, None, None]
        empty_VQD = weighted_NQD.new_zeros(len(videos), *pooled_NQD.shape[1:])
        count_V = weight_N.new_zeros(len(videos)).index_add(0, video_N, weight_N.detach())
        mean_VQD = empty_VQD.index_add(0, video_N, weighted_NQD) / count_V[:, None, None]
        return to_lm(mean_VQD.to(to_lm.weight.dtype))
