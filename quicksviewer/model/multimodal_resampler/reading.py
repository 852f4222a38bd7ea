"""Ragged attention of shared queries to the patches of every cube, straight from the tower's tokens.

Letters: N frames of all media, n of a chunk, C cubes, P patches, S queries (of all heads), d tower width,
J cubes that a frame may belong to (its own; with soft membership also the one before and the one after).

A key or value is W_kv x behind a LayerNorm, that is a linear map of x times one number per patch, the
inverse spread of W_kv x, which the Gram matrix of W_kv gives. So queries are brought to the tower's width,
and neither keys nor values ever exist. A softmax over a cube is a mean of the softmaxes over its frames,
weighted by their sums of exponentials; a share of a frame in a cube multiplies its weight, which is a bias
of log(share).

The backward pass is written by hand and computes the softmax again: autograd would keep several tensors of
N P S and N S d.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 512 << 20}
"""Size of the largest tensor of a chunk of frames: bounds what exists at once, changes nothing else."""
EPS = 1e-6
"""Of the LayerNorm."""
MOST_LOG_WEIGHT = 3.0
"""Bound of a frame's log weight in a cube that it has no share in; in its own it is at most 0. It is the
slope at no share, and a frame that would take the cube over has a steep one that soon flattens."""


def chunks_of(tokens_NPd: Tensor, num_queries: int) -> list[slice]:
    """Frames cut into runs whose scores (n, P, S) and readings (n, S, d) fit into CHUNK_BYTES."""
    num_frames, *sizes = tokens_NPd.shape
    room = CHUNK_BYTES.get(tokens_NPd.device.type, CHUNK_BYTES["cpu"])
    step = max(room // (4 * num_queries * max(sizes)), 1)
    return [slice(at, min(at + step, num_frames)) for at in range(0, num_frames, step)]


def inverse_spread(tokens_nPd: Tensor, gram_dd: Tensor) -> Tensor:
    """1 / standard deviation of W_kv x for every patch: (n, P, 1) float32."""
    square_nPd = (tokens_nPd.flatten(0, 1) @ gram_dd).view_as(tokens_nPd).mul_(tokens_nPd)
    return square_nPd.sum(dim=-1, keepdim=True, dtype=torch.float32).clamp_min_(0).add_(EPS).rsqrt_()


class FrameSoftmax(NamedTuple):
    """The softmax over the patches of each frame, and what it was made of."""

    scaled_nPd: Tensor
    """Tokens times their inverse spreads."""
    parts_nPS: Tensor
    """float32."""
    top_n1S: Tensor
    sum_n1S: Tensor
    """The largest score, and the sum of the exponentials of all scores less it."""

    @classmethod
    def of(cls, tokens_nPd: Tensor, scale_nP1: Tensor, query_Sd: Tensor, plane_PS: Tensor) -> "FrameSoftmax":
        scaled_nPd = tokens_nPd * scale_nP1.to(tokens_nPd.dtype)
        scores_nPS = (scaled_nPd.flatten(0, 1) @ query_Sd.T).view(*tokens_nPd.shape[:2], -1).float()
        top_n1S = scores_nPS.add_(plane_PS).amax(dim=1, keepdim=True)
        sum_n1S = scores_nPS.sub_(top_n1S).exp_().sum(dim=1, keepdim=True)
        return cls(scaled_nPd, scores_nPS.div_(sum_n1S), top_n1S, sum_n1S)

    def log_sum(self) -> Tensor:
        """Log-sum-exp of the scores: (n, S) float32."""
        return (self.sum_n1S.log() + self.top_n1S).squeeze(1)

    def read(self) -> Tensor:
        """What each query reads from each frame alone: (n, S, d) float32."""
        return torch.bmm(self.parts_nPS.to(self.scaled_nPd.dtype).transpose(1, 2), self.scaled_nPd).float()


def cube_weights(score_NS: Tensor, share_NJ: Tensor, cube_NJ: Tensor, num_cubes: int) -> Tensor:
    """exp(score) over its sum in the cube, shares being the weights of the sum: (N, J, S) float32."""
    (N, S), J = score_NS.shape, share_NJ.shape[1]
    index = cube_NJ.flatten()[:, None].expand(N * J, S)
    in_cube_NJS = score_NS[:, None].expand(N, J, S).masked_fill((share_NJ <= 0)[..., None], -torch.inf)
    top_CS = score_NS.new_full((num_cubes, S), -torch.inf)
    top_CS = top_CS.scatter_reduce(0, index, in_cube_NJS.flatten(0, 1), "amax")
    # bounded where a frame has no share: there it is not part of the sum, only of a derivative
    parts_NJS = (score_NS[:, None] - top_CS[cube_NJ]).clamp_(max=MOST_LOG_WEIGHT).exp_()
    weighed = (parts_NJS * share_NJ[..., None]).flatten(0, 1)
    sum_CS = torch.zeros_like(top_CS).index_add_(0, cube_NJ.flatten(), weighed)
    return parts_NJS / sum_CS[cube_NJ]


class ReadCubes(torch.autograd.Function):
    """What every query reads from every cube, as a mean of scaled tokens: (C, S, d) float32."""

    @staticmethod
    def forward(ctx, tokens_NPd, gram_dd, query_Sd, plane_PS, time_NS, share_NJ, cube_NJ, num_cubes):
        """gram, query, plane, time and shares are float32; tokens set the type of the large products."""
        gram, query = gram_dd.to(tokens_NPd.dtype), query_Sd.to(tokens_NPd.dtype)
        chunks, scales, log_sums = chunks_of(tokens_NPd, len(query)), [], []
        for rows in chunks:
            scales.append(inverse_spread(tokens_NPd[rows], gram))
            log_sums.append(FrameSoftmax.of(tokens_NPd[rows], scales[-1], query, plane_PS).log_sum())
        weight_NJS = cube_weights(torch.cat(log_sums) + time_NS, share_NJ, cube_NJ, num_cubes)
        factor_NJS = weight_NJS * share_NJ[..., None]
        out_CSd = weight_NJS.new_zeros(num_cubes, len(query), tokens_NPd.shape[-1])
        for rows, scale_nP1 in zip(chunks, scales, strict=True):
            read_nSd = FrameSoftmax.of(tokens_NPd[rows], scale_nP1, query, plane_PS).read()
            for cube_n, factor_nS in zip(cube_NJ[rows].T, factor_NJS[rows].unbind(1), strict=True):
                out_CSd.index_add_(0, cube_n, read_nSd * factor_nS[..., None])
        scale_NP1 = torch.cat(scales)
        ctx.save_for_backward(
            tokens_NPd, gram, query, plane_PS, scale_NP1, weight_NJS, share_NJ, cube_NJ, out_CSd
        )
        return out_CSd

    @staticmethod
    def backward(ctx, grad_CSd):
        tokens_NPd, gram, query, plane, scale_NP1, weight_NJS, share_NJ, cube_NJ, out_CSd = ctx.saved_tensors
        along_CS = (grad_CSd * out_CSd).sum(dim=-1)
        sums = [None, None, None]
        grad_tokens = torch.empty_like(tokens_NPd) if ctx.needs_input_grad[0] else None
        time, share = [], []
        for rows in chunks_of(tokens_NPd, len(query)):
            softmax = FrameSoftmax.of(tokens_NPd[rows], scale_NP1[rows], query, plane)
            merge = backward_of_merge(
                softmax.read(), grad_CSd, along_CS, weight_NJS[rows], share_NJ[rows], cube_NJ[rows]
            )
            parts = backward_of_softmax(tokens_NPd[rows], scale_NP1[rows], gram, query, softmax, *merge[:3])
            if grad_tokens is not None:
                grad_tokens[rows] = parts[0]
            time.append(merge[1])
            share.append(merge[3])
            sums = [plus(total, part.float()) for total, part in zip(sums, parts[1:], strict=True)]
        return grad_tokens, *sums, torch.cat(time), torch.cat(share), None, None


def plus(total: Tensor | None, part: Tensor) -> Tensor:
    """Adds to a sum in place; the first part becomes the sum."""
    return part if total is None else total.add_(part)


def backward_of_merge(read_nSd, grad_CSd, along_CS, weight_nJS, share_nJ, cube_nJ):
    """Gradients of what frames read (n, S, d), of their scores in their cubes (n, S), the product of the
    first with what was read (n, S), which a softmax needs, and the gradient of the shares (n, J)."""
    grad_read = grad_score = along_read = None
    grad_share = []
    columns = zip(cube_nJ.T, weight_nJS.unbind(1), share_nJ.T, strict=True)
    for cube_n, weight_nS, share_n in columns:
        grad_nSd = grad_CSd[cube_n]
        along_nS = (grad_nSd * read_nSd).sum(dim=-1)
        gain_nS = weight_nS * (along_nS - along_CS[cube_n])
        factor_nS = weight_nS * share_n[:, None]
        grad_share.append(gain_nS.sum(dim=-1))
        grad_score = plus(grad_score, gain_nS * share_n[:, None])
        along_read = plus(along_read, along_nS.mul_(factor_nS))
        grad_read = plus(grad_read, grad_nSd.mul_(factor_nS[..., None]))
    return grad_read, grad_score, along_read, torch.stack(grad_share, dim=1)


def backward_of_softmax(
    tokens, scale_nP1, gram, query, softmax: FrameSoftmax, grad_read, grad_score, along_read
):
    """Gradients of a chunk: tokens (n, P, d), gram (d, d), query (S, d), plane (P, S)."""
    scaled_nPd, parts_nPS = softmax.scaled_nPd, softmax.parts_nPS
    grad_read = grad_read.to(tokens.dtype)
    grad_nPS = torch.bmm(scaled_nPd, grad_read.transpose(1, 2)).float()
    grad_nPS.sub_((along_read - grad_score)[:, None]).mul_(parts_nPS)
    grad_plane = grad_nPS.sum(dim=0)
    grad_flat = grad_nPS.to(tokens.dtype).flatten(0, 1)
    grad_query = grad_flat.T @ scaled_nPd.flatten(0, 1)
    pull_nPd = (grad_flat @ query).view_as(tokens).baddbmm_(parts_nPS.to(tokens.dtype), grad_read)
    # the inverse spread r = (x G x + eps)^-1/2 has the derivative -r^3 G x
    grad_scale = (pull_nPd * tokens).sum(dim=-1, keepdim=True, dtype=torch.float32)
    bent_flat = (tokens * (-scale_nP1.pow(3) * grad_scale).to(tokens.dtype)).flatten(0, 1)
    grad_gram = bent_flat.T @ tokens.flatten(0, 1) / 2
    pull_nPd.mul_(scale_nP1.to(tokens.dtype)).flatten(0, 1).addmm_(bent_flat, gram)
    return pull_nPd, grad_gram, grad_query, grad_plane
