"""Attention on several ranks against attention in one process: values and gradients, for every order."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rank_runner import on_ranks

from quicksviewer.model.documents import causal_in_documents
from quicksviewer.train.sequence_parallel.attention import attend, key_heads
from quicksviewer.train.sequence_parallel.groups import set_pg_manager
from quicksviewer.train.sequence_parallel.plan import SequencePlan
from quicksviewer.train.sequence_parallel.topology import Topology

ROW = [1] * 9 + [2] * 5 + [3] * 19 + [0] * 4
"""Documents whose borders lie inside of shards, and padding; 37 tokens are no multiple of any team."""
SECOND = [4] * 33 + [0] * 4
SHAPES = {
    "ulysses-2": (2, 2, 1, "ring_varlen", 4, 4),
    "ulysses-2-one-key-head": (2, 2, 1, "ring_varlen", 4, 1),
    "ulysses-2-three-key-heads": (2, 2, 1, "ring_varlen", 6, 3),
    "ring-2": (2, 2, 2, "ring_varlen", 4, 2),
    "zigzag-2": (2, 2, 2, "zigzag_ring_varlen", 3, 1),
    "ulysses-4": (4, 4, 1, "ring_varlen", 4, 4),
    "ulysses-4-two-key-heads": (4, 4, 1, "ring_varlen", 8, 2),
    "ring-4": (4, 4, 4, "ring_varlen", 3, 3),
    "zigzag-4": (4, 4, 4, "zigzag_ring_varlen", 2, 1),
    "product": (4, 4, 2, "ring_varlen", 4, 1),
    "zigzag-product": (4, 4, 2, "zigzag_ring_varlen", 4, 2),
    "two-teams": (4, 2, 2, "zigzag_ring_varlen", 4, 2),
}
"""Name -> world, team, ring, order, heads of queries, heads of keys."""
SCALE, WIDTH = 0.3, 16


def padded(plan_class, topology, order) -> torch.Tensor:
    length = plan_class.padded_length(topology, order, len(ROW))
    return torch.tensor([row + [0] * (length - len(row)) for row in (ROW, SECOND)])


def operands(length: int, heads: int, kv_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(2, size, length, WIDTH, generator=generator) for size in sizes]


def reference(segments: torch.Tensor, heads: int, kv_heads: int) -> list[torch.Tensor]:
    """What one process reads, and its gradients of q, k, v, in float64."""
    *qkv, weights = (x.double() for x in operands(segments.shape[1], heads, kv_heads))
    q, k, v = (x.requires_grad_(True) for x in qkv)
    shared = [x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v)]
    out = F.scaled_dot_product_attention(q, *shared, attn_mask=causal_in_documents(segments), scale=SCALE)
    real = (segments > 0)[:, None, :, None]
    (out * weights * real).sum().backward()
    return [(out * real).detach(), q.grad, k.grad, v.grad]


def on_a_rank(world, sequence, ring, order, heads, kv_heads) -> dict:
    topology = Topology(world, sequence, ring)
    manager = set_pg_manager(topology)
    segments = padded(SequencePlan, topology, order)
    plan = SequencePlan(topology, order, segments.numpy())
    places = torch.from_numpy(plan.places(manager.sequence_rank))
    *qkv, weights = (x[:, :, places] for x in operands(segments.shape[1], heads, kv_heads))
    q, k, v = (x.requires_grad_(True) for x in qkv)
    out = attend(q, k, v, plan, manager, SCALE)
    real = (segments > 0)[:, None, places, None]
    (out * weights * real).sum().backward()
    found = [(out * real).detach(), q.grad, k.grad, v.grad]
    wanted = reference(segments, heads, kv_heads)
    return {
        name: ((ours - whole[:, :, places]).abs().max() / whole.abs().max()).item()
        for name, ours, whole in zip(("out", "q", "k", "v"), found, wanted, strict=True)
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    keys = ("world", "sequence", "ring", "order", "heads", "kv_heads")
    results = {}
    for world in (2, 4):
        cases = {n: (on_a_rank, dict(zip(keys, s, strict=True))) for n, s in SHAPES.items() if s[0] == world}
        results |= on_ranks(world, cases, tmp_path_factory.mktemp("attention"))
    return results


@pytest.mark.parametrize("name", SHAPES)
def test_attention_and_its_gradients_are_those_of_one_process(found, name):
    for rank, differences in enumerate(found[name]):
        assert all(difference < 1e-6 for difference in differences.values()), (rank, differences)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ulysses", "wanted"),
    [
        (4, 4, 2, [[0, 1], [2, 3]]),
        (4, 1, 4, [[0], [0], [0], [0]]),
        (8, 2, 4, [[0], [0], [1], [1]]),
        (6, 3, 2, [[0, 1], [1, 2]]),
        (28, 4, 4, [[0], [1], [2], [3]]),
    ],
)
def test_a_rank_gets_the_key_heads_that_its_queries_read(heads, kv_heads, ulysses, wanted):
    assert key_heads(heads, kv_heads, ulysses) == wanted


def test_heads_that_cannot_be_dealt_are_refused():
    with pytest.raises(ValueError, match="28 heads.*8 ranks"):
        key_heads(28, 4, 8)
    assert np.array_equal(np.concatenate(key_heads(28, 4, 2)), [0, 1, 2, 3])
