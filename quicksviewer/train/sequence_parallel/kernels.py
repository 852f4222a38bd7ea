"""Attention of one block, forward and backward, with the log-sum-exp that lets blocks be merged.

Letters: H heads of queries (keys and values have as many), Q K their tokens, D width of a head. Forward gives
what was read (H, Q, D) and the log of the sum of exponentials of the scores (H, Q) float32. Backward takes
what was read and the log-sum-exp of the *whole* row and gives the block's share of three gradients. `causal`
blocks are square; query i sees the keys 0..i.
"""

import torch
from torch import Tensor

QUERIES_AT_A_TIME = 1024
"""Bounds the matrix of scores of the exact kernel."""

aten = torch.ops.aten


class Exact:
    """Plain matrix products in float32: on any device, and the reference for the others."""

    @staticmethod
    def forward(q_HQD: Tensor, k_HKD: Tensor, v_HKD: Tensor, causal: bool, scale: float):
        read, log_sum = [], []
        for start in range(0, q_HQD.shape[1], QUERIES_AT_A_TIME):
            scores_HQK = _scores(q_HQD, k_HKD, start, causal, scale)
            log_sum.append(scores_HQK.logsumexp(dim=-1))
            read.append(
                (scores_HQK - log_sum[-1][..., None]).exp() @ v_HKD[:, : scores_HQK.shape[-1]].float()
            )
        return torch.cat(read, dim=1), torch.cat(log_sum, dim=1)

    @staticmethod
    def backward(grad_HQD, q_HQD, k_HKD, v_HKD, read_HQD, log_sum_HQ, causal: bool, scale: float):
        grad_q = torch.zeros_like(q_HQD, dtype=torch.float32)
        grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k_HKD, v_HKD))
        for start in range(0, q_HQD.shape[1], QUERIES_AT_A_TIME):
            some = slice(start, start + QUERIES_AT_A_TIME)
            scores_HQK = _scores(q_HQD, k_HKD, start, causal, scale)
            seen = scores_HQK.shape[-1]
            parts_HQK = (scores_HQK - log_sum_HQ[:, some, None]).exp()
            grad = grad_HQD[:, some].float()
            grad_v[:, :seen] += parts_HQK.transpose(1, 2) @ grad
            own_HQ1 = (grad * read_HQD[:, some].float()).sum(dim=-1, keepdim=True)
            pull_HQK = parts_HQK * (grad @ v_HKD[:, :seen].float().transpose(1, 2) - own_HQ1) * scale
            grad_q[:, some] = pull_HQK @ k_HKD[:, :seen].float()
            grad_k[:, :seen] += pull_HQK.transpose(1, 2) @ q_HQD[:, some].float()
        return grad_q, grad_k, grad_v


def _scores(q_HQD: Tensor, k_HKD: Tensor, start: int, causal: bool, scale: float) -> Tensor:
    """Scores of some queries from `start` on; of a causal block only those of keys that one of them sees."""
    some_HQD = q_HQD[:, start : start + QUERIES_AT_A_TIME]
    stop = start + some_HQD.shape[1]
    keys_HKD = k_HKD[:, :stop] if causal else k_HKD
    scores_HQK = some_HQD.float() @ keys_HKD.float().transpose(1, 2) * scale
    if causal:
        later_QK = torch.ones(scores_HQK.shape[1:], dtype=torch.bool, device=q_HQD.device).triu(start + 1)
        scores_HQK = scores_HQK.masked_fill(later_QK, -torch.inf)
    return scores_HQK


class FlashOnCpu:
    """The kernel behind scaled_dot_product_attention on CPU, which keeps its log-sum-exp."""

    @staticmethod
    def forward(q_HQD, k_HKD, v_HKD, causal: bool, scale: float):
        parts = (x[None] for x in (q_HQD, k_HKD, v_HKD))
        read, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(
            *parts, 0.0, causal, attn_mask=None, scale=scale
        )
        return read[0], log_sum[0]

    @staticmethod
    def backward(grad_HQD, q_HQD, k_HKD, v_HKD, read_HQD, log_sum_HQ, causal: bool, scale: float):
        parts = (x[None] for x in (grad_HQD, q_HQD, k_HKD, v_HKD, read_HQD, log_sum_HQ))
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *parts, 0.0, causal, attn_mask=None, scale=scale
        )
        return tuple(grad[0] for grad in grads)


class FlashOnCuda:
    """FlashAttention 2 as torch carries it, for half precision. Has not been run yet: no GPU was at hand."""

    @staticmethod
    def forward(q_HQD, k_HKD, v_HKD, causal: bool, scale: float):
        parts = (x[None] for x in (q_HQD, k_HKD, v_HKD))
        read, log_sum, *_ = aten._scaled_dot_product_flash_attention(*parts, 0.0, causal, scale=scale)
        return read[0], log_sum[0]

    @staticmethod
    def backward(grad_HQD, q_HQD, k_HKD, v_HKD, read_HQD, log_sum_HQ, causal: bool, scale: float):
        parts = (x[None] for x in (grad_HQD, q_HQD, k_HKD, v_HKD, read_HQD, log_sum_HQ))
        seed = torch.zeros((), dtype=torch.uint64, device=q_HQD.device)  # of the dropout that there is not
        sizes = (q_HQD.shape[1], k_HKD.shape[1])
        grads = aten._scaled_dot_product_flash_attention_backward(
            *parts, None, None, *sizes, 0.0, causal, seed, seed, scale=scale
        )
        return tuple(grad[0] for grad in grads)


def kernel_for(x: Tensor) -> type:
    """The fastest kernel that is exact for tensors like this one."""
    if x.device.type == "cpu":
        return FlashOnCpu
    fits = x.dtype in (torch.float16, torch.bfloat16) and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    return FlashOnCuda if x.device.type == "cuda" and fits else Exact
