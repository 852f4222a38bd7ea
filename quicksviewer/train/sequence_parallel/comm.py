"""Collectives with exact gradients, on any process group and device. A group of None is this process alone.

The rule behind all backward passes: the loss is the sum of what the ranks compute, and the gradient that a
rank keeps is that of its own tensor in this sum. So the adjoint of a copy to all is a sum over all.
torch.distributed.nn is not used: in torch 2.13 its all_to_all takes a rank of the group for one of the world.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

Group = ProcessGroup | None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, send, receive, group):
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _exchange(rows, send, receive, group)

    @staticmethod
    def backward(ctx, grad):
        return _exchange(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def _exchange(rows: Tensor, send: list[int], receive: list[int], group: ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    return out


def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int], group: Group) -> Tensor:
    """`send[i]` rows, in order, to rank i of the group; back come `receive[i]` rows of rank i, in order."""
    if len(rows) != sum(send):
        raise ValueError(f"{len(rows)} rows to send, but the counts {list(send)} sum to {sum(send)}")
    return rows if group is None else _Exchange.apply(rows, list(send), list(receive), group)


def all_to_all(
    x: Tensor,
    scatter_dim: int,
    gather_dim: int,
    group: Group,
    scatter_sizes: Sequence[int] | None = None,
    gather_sizes: Sequence[int] | None = None,
) -> Tensor:
    """Cut one axis among the ranks and join another: rank i gets the i-th piece of everybody's `scatter_dim`.

    Sizes are per rank; by default the scattered axis is cut evenly, and all ranks are as long as this one in
    the gathered axis. ValueError when the scattered axis does not match.
    """
    if group is None:
        return x
    parts, me = group.size(), group.rank()
    if scatter_sizes is None and x.shape[scatter_dim] % parts:
        raise ValueError(f"axis {scatter_dim} of {tuple(x.shape)} cannot be cut into {parts} equal pieces")
    scatter = list(scatter_sizes or [x.shape[scatter_dim] // parts] * parts)
    gather = list(gather_sizes or [x.shape[gather_dim]] * parts)
    if sum(scatter) != x.shape[scatter_dim]:
        raise ValueError(f"axis {scatter_dim} of {tuple(x.shape)} cannot be cut into {scatter}")
    rows = x.movedim(scatter_dim, 0)  # its pieces are then contiguous
    shape = list(x.shape)
    shape[scatter_dim] = scatter[me]
    shapes = [[*shape[:gather_dim], size, *shape[gather_dim + 1 :]] for size in gather]
    per_row = x.numel() // x.shape[scatter_dim]
    counts = [math.prod(shape) for shape in shapes]
    pieces = exchange(rows.reshape(-1), [n * per_row for n in scatter], counts, group).split(counts)
    leading = [[shape[scatter_dim], *shape[:scatter_dim], *shape[scatter_dim + 1 :]] for shape in shapes]
    blocks = [piece.view(shape).movedim(0, scatter_dim) for piece, shape in zip(pieces, leading, strict=True)]
    return torch.cat(blocks, dim=gather_dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, counts, group):
        ctx.counts, ctx.group = counts, group
        longest = max(counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        out = rows.new_empty(longest * len(counts), *rows.shape[1:])
        dist.all_gather_into_tensor(out, padded, group=group)
        return torch.cat([part[:n] for part, n in zip(out.split(longest), counts, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        counts, longest = ctx.counts, max(ctx.counts)
        padded = grad.new_zeros(longest * len(counts), *grad.shape[1:])
        for part, rows in zip(padded.split(longest), grad.split(counts), strict=True):
            part[: len(rows)] = rows
        out = grad.new_empty(longest, *grad.shape[1:])
        dist.reduce_scatter_tensor(out, padded, group=ctx.group)
        return out[: counts[ctx.group.rank()]], None, None


def gather(rows: Tensor, counts: Sequence[int], group: Group) -> Tensor:
    """The rows of all ranks, `counts[i]` of rank i, in order: (sum of counts, ...) on each of them.

    Backward, every rank gets the sum over all ranks of the gradients of its rows.
    """
    if group is None:
        return rows
    if len(rows) != counts[group.rank()]:
        raise ValueError(f"rank {group.rank()} has {len(rows)} rows, the counts {list(counts)} say otherwise")
    return _Gather.apply(rows, list(counts), group) if max(counts) else rows


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx, grad):
        return _summed(grad, ctx.group), None


def _summed(x: Tensor, group: ProcessGroup) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, group=group)
    return out


def total(x: Tensor, group: Group) -> Tensor:
    """The sum over the ranks, on each of them. Backward, the sum of all their gradients."""
    return x if group is None else _Total.apply(x, group)


class RingPass:
    """Tensors on their way to the next rank of a ring, while this one computes. `wait()` gives those of the
    rank before."""

    def __init__(self, tensors: Sequence[Tensor], group: ProcessGroup):
        ring, me = group.size(), group.rank()
        to, source = (dist.get_global_rank(group, (me + step) % ring) for step in (1, -1))
        self._kept = [tensor.contiguous() for tensor in tensors]  # alive until they have left
        self._arrived = [torch.empty_like(tensor) for tensor in self._kept]
        sends = [dist.P2POp(dist.isend, tensor, to, group) for tensor in self._kept]
        receives = [dist.P2POp(dist.irecv, tensor, source, group) for tensor in self._arrived]
        # two ranks are each other's next and last: the even one sends first
        ops = sends + receives if me % 2 == 0 else receives + sends
        self._requests = dist.batch_isend_irecv(ops)

    def wait(self) -> list[Tensor]:
        for request in self._requests:
            request.wait()
        self._kept = []
        return self._arrived
