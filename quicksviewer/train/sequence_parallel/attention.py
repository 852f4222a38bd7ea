"""Exact attention over a sequence that lies on several ranks: Ulysses within, a ring around it.

Letters: B rows, H heads of queries, G heads of keys and values, T tokens of a rank, L tokens of a ring rank,
D width of a head.

Ulysses: the ranks of a group hold neighbouring tokens and all heads; one exchange gives each of them all
tokens of the group and some heads, another one gives the result back (DeepSpeed-Ulysses, arXiv:2309.14509).
Ring: queries stay, keys and values go round; what is read from each part is merged by log-sum-exp (Ring
Attention, arXiv:2310.01889). Backward, keys and values go round again and take their gradients along. Only
blocks in which a query may see a key are computed (plan.py): other documents and padding cost nothing.
"""

import torch
from torch import Tensor

from quicksviewer.train.sequence_parallel.comm import RingPass, all_to_all
from quicksviewer.train.sequence_parallel.groups import ProcessGroupManager
from quicksviewer.train.sequence_parallel.kernels import kernel_for
from quicksviewer.train.sequence_parallel.plan import Block, SequencePlan

NAME = "quicksviewer_sequence_parallel"
"""Of our attention in transformers' interface."""


def register() -> str:
    """Put the attention beside those of transformers, without touching theirs. Returns its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, sequence_parallel_attention)
    return NAME


def sequence_parallel_attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    sequence: tuple[SequencePlan, ProcessGroupManager] | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """transformers' attention: query (B, H, T, D), key and value (B, G, T, D) -> (B, T, H, D).

    `sequence` is put into the model's keyword arguments by the team (see team.py); it stands for the mask.
    ValueError for what would change the result: dropout, windows, calls from outside of a team.
    """
    if sequence is None:
        raise ValueError(
            "this model belongs to a sequence-parallel team; it can be trained, not used for generation"
        )
    if dropout or sliding_window is not None:
        raise ValueError(f"no sequence parallelism with dropout={dropout}, sliding_window={sliding_window}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, *sequence, scale).transpose(1, 2), None


def attend(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTD: Tensor,
    plan: SequencePlan,
    manager: ProcessGroupManager,
    scale: float,
) -> Tensor:
    """What the tokens of this rank read from the whole sequence: (B, H, T, D)."""
    heads, kv_heads, ulysses = q_BHTD.shape[1], k_BGTD.shape[1], plan.topology.ulysses
    needed = key_heads(heads, kv_heads, ulysses)
    q_BHLD = all_to_all(q_BHTD, 1, 2, manager.ulysses)
    kv_BGL2 = torch.cat([k_BGTD, v_BGTD], dim=-1)
    if ulysses > 1:
        index = torch.tensor([head for some in needed for head in some], device=kv_BGL2.device)
        sizes = [len(some) for some in needed]
        kv_BGL2 = all_to_all(kv_BGL2.index_select(1, index), 1, 2, manager.ulysses, sizes)
    own, share = needed[manager.ulysses_rank], heads // ulysses
    first = manager.ulysses_rank * share
    head_of = [own.index(head * kv_heads // heads) for head in range(first, first + share)]
    read_BHLD = RingAttention.apply(q_BHLD, *kv_BGL2.chunk(2, dim=-1), head_of, plan, manager, scale)
    return all_to_all(read_BHLD, 2, 1, manager.ulysses)


def key_heads(heads: int, kv_heads: int, ulysses: int) -> list[list[int]]:
    """Heads of keys that each Ulysses rank needs for its share of the query heads.

    With fewer of them than ranks a head goes to several. ValueError for a share that is no whole number.
    """
    if heads % ulysses:
        raise ValueError(f"{heads} heads cannot be dealt to {ulysses} ranks; use a longer ring")
    share = heads // ulysses
    return [
        sorted({head * kv_heads // heads for head in range(rank * share, (rank + 1) * share)})
        for rank in range(ulysses)
    ]


class RingAttention(torch.autograd.Function):
    """Queries (B, H, L, D) of a ring rank against the keys and values (B, G, L, D) of all: (B, H, L, D).

    `head_of`: the head of keys that each head of queries reads. Only those G heads travel.
    """

    @staticmethod
    def forward(ctx, q, k, v, head_of: list[int], plan: SequencePlan, manager, scale: float):
        kernel, ring, rank = kernel_for(q), plan.topology.ring, manager.ring_rank
        held = torch.tensor(head_of, device=q.device)
        read = torch.zeros_like(q, dtype=torch.float32)
        log_sum = q.new_full(q.shape[:-1], -torch.inf, dtype=torch.float32)
        own = (q, k, v)
        for step in range(ring):
            passing = RingPass([k, v], manager.ring) if step < ring - 1 else None
            for block in plan.blocks(rank, (rank - step) % ring):
                parts = kernel.forward(*_operands(block, q, k, v, held), block.causal, scale)
                _merge(read[block.row], log_sum[block.row], block, *parts)
            if passing:
                k, v = passing.wait()
        read = read.to(q.dtype)
        ctx.save_for_backward(*own, held, read, log_sum)
        ctx.plan, ctx.manager, ctx.scale = plan, manager, scale
        return read

    @staticmethod
    def backward(ctx, grad):
        q, k, v, held, read, log_sum = ctx.saved_tensors
        kernel, ring, rank = kernel_for(q), ctx.plan.topology.ring, ctx.manager.ring_rank
        grad_q, *grad_kv = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
        for step in range(ring):
            passing = RingPass([k, v], ctx.manager.ring) if step < ring - 1 else None
            for block in ctx.plan.blocks(rank, (rank - step) % ring):
                some = [x[block.row][:, block.queries] for x in (read, log_sum)]
                operands = _operands(block, q, k, v, held)
                parts = kernel.backward(
                    grad[block.row][:, block.queries], *operands, *some, block.causal, ctx.scale
                )
                grad_q[block.row][:, block.queries] += parts[0]
                for total, part in zip(grad_kv, parts[1:], strict=True):
                    total[block.row][:, block.keys] += _by_key_head(part, held, len(total[block.row]))
            if ring > 1:  # the gradients of a part travel with it, and after the last step home
                grad_kv = RingPass(grad_kv, ctx.manager.ring).wait()
            if passing:
                k, v = passing.wait()
        return *(x.to(q.dtype) for x in (grad_q, *grad_kv)), None, None, None, None


def _operands(block: Block, q: Tensor, k: Tensor, v: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a block, each (H, tokens, D)."""
    keys, values = (x[block.row][:, block.keys].index_select(0, held) for x in (k, v))
    return q[block.row][:, block.queries], keys, values


def _by_key_head(grad_HKD: Tensor, held: Tensor, kv_heads: int) -> Tensor:
    """Gradients of the query heads, summed over those that read the same head of keys: (G, K, D)."""
    total = grad_HKD.new_zeros(kv_heads, *grad_HKD.shape[1:], dtype=torch.float32)
    return total.index_add_(0, held, grad_HKD.float())


def _merge(read: Tensor, log_sum: Tensor, block: Block, more: Tensor, more_log_sum: Tensor) -> None:
    """Put what a block read beside what was read before, each weighted with its sum of exponentials."""
    before = log_sum[:, block.queries]
    both = torch.logaddexp(before, more_log_sum)
    old, new = (before - both).exp()[..., None], (more_log_sum - both).exp()[..., None]
    read[:, block.queries] = old * read[:, block.queries] + new * more
    log_sum[:, block.queries] = both
