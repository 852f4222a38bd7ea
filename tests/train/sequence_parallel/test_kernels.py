"""Kernels of one block against autograd, alone and as a part of a larger row."""

import pytest
import torch

from quicksviewer.train.sequence_parallel import kernels
from quicksviewer.train.sequence_parallel.kernels import Exact, FlashOnCpu, kernel_for

SCALE = 0.4


@pytest.fixture(params=[Exact, FlashOnCpu])
def kernel(request, monkeypatch):
    monkeypatch.setattr(kernels, "QUERIES_AT_A_TIME", 4)  # so that the exact one takes several turns
    return request.param


def operands(queries: int, keys: int) -> list[torch.Tensor]:
    return [torch.randn(3, n, 8, requires_grad=True) for n in (queries, keys, keys)]


def scores(q, k, causal):
    found = q @ k.transpose(1, 2) * SCALE
    return (
        found.masked_fill(torch.ones_like(found, dtype=torch.bool).triu(1), -torch.inf) if causal else found
    )


@pytest.mark.parametrize(
    ("queries", "keys", "causal"), [(9, 9, True), (9, 5, False), (1, 7, False), (1, 1, True)]
)
def test_a_block_alone(kernel, queries, keys, causal):
    q, k, v = operands(queries, keys)
    wanted = scores(q, k, causal).softmax(dim=-1) @ v
    grad = torch.randn_like(wanted)
    wanted.backward(grad)
    with torch.no_grad():
        read, log_sum = kernel.forward(q, k, v, causal, SCALE)
        grads = kernel.backward(grad, q, k, v, read, log_sum, causal, SCALE)
    torch.testing.assert_close(read, wanted)
    torch.testing.assert_close(log_sum, scores(q, k, causal).logsumexp(dim=-1))
    for ours, x in zip(grads, (q, k, v), strict=True):
        torch.testing.assert_close(ours, x.grad)


def test_shares_of_two_blocks_add_up_to_the_row(kernel):
    q, k, v = operands(6, 10)
    wanted = scores(q, k, False).softmax(dim=-1) @ v
    grad = torch.randn_like(wanted)
    wanted.backward(grad)
    with torch.no_grad():
        log_sum = scores(q, k, False).logsumexp(dim=-1)
        halves = [
            kernel.backward(grad, q, k[:, part], v[:, part], wanted, log_sum, False, SCALE)
            for part in (slice(0, 4), slice(4, 10))
        ]
    torch.testing.assert_close(halves[0][0] + halves[1][0], q.grad)
    for place, x in ((1, k), (2, v)):
        torch.testing.assert_close(torch.cat([half[place] for half in halves], dim=1), x.grad)


def test_the_kernel_is_chosen_by_device_and_type():
    assert kernel_for(torch.zeros(1)) is FlashOnCpu
    assert kernel_for(torch.zeros(1, 8, device="meta")) is Exact
