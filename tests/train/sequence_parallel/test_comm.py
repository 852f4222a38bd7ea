"""Collectives on sub-groups: values, and gradients against the same sum computed in one process."""

import pytest
import torch
import torch.distributed as dist
from rank_runner import on_ranks

from quicksviewer.train.sequence_parallel import comm
from quicksviewer.train.sequence_parallel.groups import drop_pg_manager, get_pg_manager, set_pg_manager
from quicksviewer.train.sequence_parallel.topology import Topology

WORLD = 4
COUNTS = {2: [3, 1], 4: [2, 0, 3, 1]}


def rows_of(rank: int, count: int, width: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def weights_of(rank: int, shape) -> torch.Tensor:
    """What a rank's loss weighs its result with."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def value_and_gradient(function, x: torch.Tensor) -> tuple:
    x = x.clone().requires_grad_(True)
    y = function(x)
    (y * weights_of(dist.get_rank(), y.shape)).sum().backward()
    return x.detach(), y.detach(), x.grad


def gathered(sequence: int) -> tuple:
    manager = set_pg_manager(Topology(WORLD, sequence))
    counts = COUNTS[sequence]
    own = rows_of(manager.rank, counts[manager.sequence_rank])
    return value_and_gradient(lambda x: comm.gather(x, counts, manager.sequence), own)


def totalled(sequence: int) -> tuple:
    manager = set_pg_manager(Topology(WORLD, sequence))
    return value_and_gradient(lambda x: comm.total(x, manager.sequence), rows_of(manager.rank, 2))


SEND = [[1, 0, 2, 1], [0, 2, 1, 0], [3, 1, 0, 0], [0, 0, 0, 1]]


def exchanged() -> tuple:
    manager = set_pg_manager(Topology(WORLD, WORLD))
    send, receive = SEND[manager.rank], [row[manager.rank] for row in SEND]
    own = rows_of(manager.rank, sum(send))
    return value_and_gradient(lambda x: comm.exchange(x, send, receive, manager.sequence), own)


WHOLE = (2, 6, 5, 2)
"""B, T, H, d of the tensor that ranks hold in parts of T and then of H."""
TOKENS, HEADS = [4, 2], [3, 2]


def heads_for_tokens() -> tuple:
    manager = set_pg_manager(Topology(WORLD, 2))
    me = manager.sequence_rank
    whole = torch.randn(WHOLE, dtype=torch.float64)
    own = whole.split(TOKENS, dim=1)[me]
    there = lambda x: comm.all_to_all(x, 2, 1, manager.ulysses, HEADS, TOKENS)  # noqa: E731
    x, y, grad = value_and_gradient(there, own)
    assert torch.equal(y, whole.split(HEADS, dim=2)[me])
    back = comm.all_to_all(y, 1, 2, manager.ulysses, TOKENS, HEADS)
    assert torch.equal(back, own)
    weights = torch.cat(
        [
            weights_of(rank, whole.split(HEADS, dim=2)[i].shape)
            for i, rank in enumerate(manager.topology.team(manager.rank))
        ],
        dim=2,
    )
    assert torch.equal(grad, weights.split(TOKENS, dim=1)[me])
    return x.shape, y.shape


def evenly() -> tuple:
    manager = set_pg_manager(Topology(WORLD, WORLD))
    whole = torch.randn(1, 8, 4, 2)
    own = whole.split(2, dim=1)[manager.rank]
    y = comm.all_to_all(own, 2, 1, manager.ulysses)
    assert torch.equal(y, whole.split(1, dim=2)[manager.rank])
    for arguments in [(own[:, :, :3], 2, 1), (own, 2, 1, None, [1, 1, 1, 0])]:
        with pytest.raises(ValueError, match="cannot be cut into"):
            comm.all_to_all(arguments[0], *arguments[1:3], manager.ulysses, *arguments[4:])
    return (True,)


def passed_on() -> list:
    manager = set_pg_manager(Topology(WORLD, WORLD, WORLD))
    tensors = [torch.full((2, 3), float(manager.rank)), torch.tensor([manager.rank])]
    seen = []
    for _ in range(WORLD):
        tensors = comm.RingPass(tensors, manager.ring).wait()
        seen.append([int(tensors[0][0, 0]), int(tensors[1])])
    return seen


def passed_between_two() -> list:
    manager = set_pg_manager(Topology(WORLD, WORLD, 2))
    one, two = comm.RingPass(
        [torch.tensor(manager.rank), torch.tensor(10 + manager.rank)], manager.ring
    ).wait()
    return [int(one), int(two)]


def managed() -> bool:
    drop_pg_manager()
    with pytest.raises(RuntimeError, match="set_pg_manager"):
        get_pg_manager()
    with pytest.raises(ValueError, match="for 8 ranks, and 4 run"):
        set_pg_manager(Topology(8, 2))
    manager = set_pg_manager(Topology(WORLD, WORLD, 2))
    assert get_pg_manager() is manager
    assert manager.data is None and manager.sequence.size() == WORLD
    ranks = [dist.get_process_group_ranks(group) for group in (manager.ulysses, manager.ring)]
    topology = manager.topology
    return ranks == [
        next(g for g in topology.ulysses_groups() if manager.rank in g),
        next(g for g in topology.ring_groups() if manager.rank in g),
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    cases = {f"gather{s}": (gathered, {"sequence": s}) for s in COUNTS}
    cases |= {f"total{s}": (totalled, {"sequence": s}) for s in COUNTS}
    functions = (exchanged, heads_for_tokens, evenly, passed_on, passed_between_two, managed)
    cases |= {function.__name__: (function, {}) for function in functions}
    return on_ranks(WORLD, cases, tmp_path_factory.mktemp("comm"))


@pytest.mark.parametrize("sequence", COUNTS)
def test_gather_is_concatenation_and_its_gradient_a_sum(found, sequence):
    for group in Topology(WORLD, sequence).sequence_groups():
        results = [found[f"gather{sequence}"][rank] for rank in group]
        whole = torch.cat([x for x, _, _ in results])
        gradient = sum(weights_of(rank, whole.shape) for rank in group)
        for (_, y, grad), expected in zip(results, gradient.split(COUNTS[sequence]), strict=True):
            assert torch.equal(y, whole)
            torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("sequence", COUNTS)
def test_total_is_a_sum_in_both_directions(found, sequence):
    for group in Topology(WORLD, sequence).sequence_groups():
        results = [found[f"total{sequence}"][rank] for rank in group]
        for _, y, grad in results:
            torch.testing.assert_close(y, sum(x for x, _, _ in results))
            torch.testing.assert_close(grad, sum(weights_of(rank, y.shape) for rank in group))


def test_exchange_sends_every_row_once_and_its_gradient_back(found):
    sent = [x.split(send) for (x, _, _), send in zip(found["exchanged"], SEND, strict=True)]
    weights = [
        weights_of(rank, y.shape).split([row[rank] for row in SEND])
        for rank, (_, y, _) in enumerate(found["exchanged"])
    ]
    for rank, (_, y, grad) in enumerate(found["exchanged"]):
        assert torch.equal(y, torch.cat([parts[rank] for parts in sent]))
        assert torch.equal(grad, torch.cat([parts[rank] for parts in weights]))


def test_all_to_all_cuts_one_axis_and_joins_another(found):
    for rank, shapes in enumerate(found["heads_for_tokens"]):
        tokens, heads = TOKENS[rank % 2], HEADS[rank % 2]
        assert shapes == ((2, tokens, 5, 2), (2, 6, heads, 2))
    assert all(found["evenly"])


def test_a_ring_passes_on_to_the_next(found):
    for rank, seen in enumerate(found["passed_on"]):
        assert seen == [[(rank - step) % WORLD] * 2 for step in range(1, WORLD + 1)]
    assert found["passed_between_two"] == [[2, 12], [3, 13], [0, 10], [1, 11]]


def test_groups_are_those_of_the_topology(found):
    assert all(found["managed"])


def test_alone_nothing_is_sent():
    x = torch.randn(3, 2)
    assert comm.gather(x, [3], None) is x
    assert comm.total(x, None) is x
    assert comm.exchange(x, [3], [3], None) is x
    assert comm.all_to_all(x, 0, 1, None) is x


def test_rows_that_the_counts_do_not_cover_are_refused():
    with pytest.raises(ValueError, match="3 rows to send.*sum to 2"):
        comm.exchange(torch.randn(3, 2), [1, 1], [1, 1], None)


def test_groups_need_torch_distributed():
    with pytest.raises(RuntimeError, match="start torch.distributed"):
        set_pg_manager(Topology(1))
