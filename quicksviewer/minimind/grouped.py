"""Many matrix products in one call: rows that are sorted by expert, each segment with the matrix of its
expert. And on top of it the pass through all experts, with its gradient.

Letters: N tokens, E experts, K of them per token, A = N x K assignments, D width, I width of an expert.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALIGNMENT = 16
"""What torch's grouped product takes: these types, rows of a multiple of so many bytes."""
CHUNK_BYTES = {"cpu": 2 << 20}
LARGE_CHUNK_BYTES = 64 << 20
"""How much of the inner layer is worked on at a time in the backward pass, by device and on others: on a CPU
what its cache holds, elsewhere enough to keep it busy."""


@dataclass(frozen=True)
class Segments:
    """Assignments in the order of their experts: token_A, whose row each is; place_A, where the K of each
    token went; sizes_E, how many each expert has; chosen, K."""

    token_A: Tensor
    place_A: Tensor
    sizes_E: Tensor
    chosen: int

    @classmethod
    def of(cls, experts_NK: Tensor, experts: int) -> "Segments":
        """Sort assignments by expert; those of an expert stay in the order of their tokens."""
        flat_A = experts_NK.flatten()
        order_A = flat_A.argsort(stable=True)
        place_A = torch.empty_like(order_A)
        place_A[order_A] = torch.arange(len(order_A), device=order_A.device)
        sizes_E = torch.zeros(experts, dtype=torch.int64, device=flat_A.device)
        sizes_E.scatter_add_(0, flat_A, torch.ones_like(flat_A))
        return cls(order_A // experts_NK.shape[1], place_A, sizes_E, experts_NK.shape[1])

    def spread(self, x_ND: Tensor) -> Tensor:
        """The row of its token for every assignment: (A, D)."""
        return x_ND.index_select(0, self.token_A)

    def gather(self, rows_AD: Tensor) -> Tensor:
        """The rows of every token: (N, K, D)."""
        return rows_AD.index_select(0, self.place_A).unflatten(0, (-1, self.chosen))

    def product(self, rows_AD: Tensor, matrices_EDO: Tensor) -> Tensor:
        """Rows times the matrix of their expert: (A, O)."""
        if _is_grouped(rows_AD, matrices_EDO):
            return F.grouped_mm(rows_AD, matrices_EDO, offs=self._ends())
        parts = zip(rows_AD.split(self.sizes_E.tolist()), matrices_EDO, strict=True)
        return torch.cat([rows @ matrix for rows, matrix in parts])

    def outer(self, left_AO: Tensor, right_AD: Tensor) -> Tensor:
        """The sum over an expert's rows of left x right: (E, O, D)."""
        if _is_grouped(left_AO, right_AD):
            return F.grouped_mm(left_AO.T, right_AD, offs=self._ends())
        sizes = self.sizes_E.tolist()
        parts = zip(left_AO.split(sizes), right_AD.split(sizes), strict=True)
        return torch.stack([left.T @ right for left, right in parts])

    def _ends(self) -> Tensor:
        return self.sizes_E.cumsum(0, dtype=torch.int32)


def _is_grouped(*factors: Tensor) -> bool:
    """Whether one call of torch computes all segments; on the CPU with the results of single products."""
    first = factors[0]
    if first.device.type == "cuda":
        able = torch.cuda.get_device_capability(first.device) >= (8, 0)
    else:
        able = first.device.type == "cpu"
    widths = {size for factor in factors for size in factor.shape[1:]}
    aligned = not any(width * first.element_size() % ALIGNMENT for width in widths)
    return able and aligned and first.dtype in DTYPES and len(first) > 0


class PassExperts(torch.autograd.Function):
    """What its experts make of each token, weighted and summed: (N, D).

    x (N, D); weights (N, K); gate_up (E, 2I, D) and down (E, D, I), the experts; `act` is the activation.
    Kept for the backward pass is the product with gate_up alone; the rest is computed again, which is a
    small part of the work. Its gradient takes its place, so that the backward pass can run only once.
    """

    @staticmethod
    def forward(ctx, x, weights, gate_up, down, experts_NK: Tensor, act: Callable):
        segments = Segments.of(experts_NK, len(down))
        inner_AI = segments.product(segments.spread(x), gate_up.transpose(1, 2))
        weight_A1 = _by_segment(weights, segments, inner_AI.dtype)
        made_AD = segments.product(_gated(inner_AI, act) * weight_A1, down.transpose(1, 2))
        ctx.save_for_backward(x, weights, gate_up, down, inner_AI)
        ctx.segments, ctx.act = segments, act
        return segments.gather(made_AD).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):
        x, weights, gate_up, down, inner_AI = ctx.saved_tensors
        wants_x, wants_weights, wants_gate_up, wants_down = ctx.needs_input_grad[:4]
        segments = ctx.segments
        weight_A1 = _by_segment(weights, segments, inner_AI.dtype)
        grad_AD = segments.spread(grad_ND)
        d_read_AI = segments.product(grad_AD, down)
        read_AI, d_weight_A1 = _through_gate(inner_AI, d_read_AI, weight_A1, ctx.act)
        del d_read_AI
        d_down = segments.outer(grad_AD, read_AI) if wants_down else None
        del grad_AD, read_AI
        d_weights = segments.gather(d_weight_A1)[..., 0].to(weights.dtype) if wants_weights else None
        d_x = segments.gather(segments.product(inner_AI, gate_up)).sum(dim=1) if wants_x else None
        d_gate_up = segments.outer(inner_AI, segments.spread(x)) if wants_gate_up else None
        return d_x, d_weights, d_gate_up, d_down, None, None


def _through_gate(inner_AI, d_read_AI, weight_A1, act: Callable) -> tuple[Tensor, Tensor]:
    """Of read = act(gate) * up, where `d_read_AI` is the gradient of weight * read: weight * read (A, I) and
    the gradient of the weight (A, 1), float32. That of inner (A, 2I) is written over inner, and d_read is
    used up. A chunk of rows at a time."""
    read_AI = torch.empty_like(d_read_AI)
    d_weight_A1 = torch.empty(len(inner_AI), 1, dtype=torch.float32, device=inner_AI.device)
    size = CHUNK_BYTES.get(inner_AI.device.type, LARGE_CHUNK_BYTES)
    rows = max(1, size // (inner_AI.shape[1] * inner_AI.element_size()))
    for start in range(0, len(inner_AI), rows):
        part = slice(start, start + rows)
        halves = inner_AI[part].chunk(2, dim=-1)
        gate_CI, up_CI = (half.detach().requires_grad_() for half in halves)
        with torch.enable_grad():
            made_CI = act(gate_CI) * up_CI
        read_CI, d_made_CI = made_CI.detach(), d_read_AI[part]
        torch.sum(d_made_CI * read_CI, dim=-1, keepdim=True, dtype=torch.float32, out=d_weight_A1[part])
        torch.mul(read_CI, weight_A1[part], out=read_AI[part])
        found = torch.autograd.grad(made_CI, (gate_CI, up_CI), d_made_CI.mul_(weight_A1[part]))
        for half, gradient in zip(halves, found, strict=True):
            half.copy_(gradient)
    return read_AI, d_weight_A1


def _by_segment(weights_NK: Tensor, segments: Segments, dtype: torch.dtype) -> Tensor:
    """The weight of every assignment: (A, 1)."""
    weight_A = torch.empty_like(weights_NK.flatten())
    weight_A[segments.place_A] = weights_NK.flatten()
    return weight_A[:, None].to(dtype)


def _gated(inner_AI: Tensor, act: Callable) -> Tensor:
    gate_AI, up_AI = inner_AI.chunk(2, dim=-1)
    return act(gate_AI) * up_AI
