"""A batch cut among ranks: put together again it is the batch, and visual tokens reach their slots."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.model.documents import next_tokens, positions
from quicksviewer.train.sequence_parallel.inputs import cut, route
from quicksviewer.train.sequence_parallel.team import SequenceTeam, join
from quicksviewer.train.sequence_parallel.topology import Topology

WAYS = [
    (Topology(4, 4, 1), "ring_varlen"),
    (Topology(4, 4, 2), "zigzag_ring_varlen"),
    (Topology(3, 3, 3), "ring_varlen"),
]
SLOTS = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1]]).bool()
VISUAL = {4: [3, 0, 5, 2], 3: [0, 4, 6]}


def shards(topology: Topology, order: str):
    segments = torch.tensor([[1] * 4 + [2] * 7, [1] * 8 + [0] * 3])
    ids = torch.arange(22).view(2, 11)
    text = {
        "input_ids": ids,
        "segment_ids": segments,
        "position_ids": positions(segments),
        "targets": next_tokens(ids, segments),
        "weights": ids.float(),
    }
    managers = [SimpleNamespace(topology=topology, sequence_rank=rank) for rank in range(topology.sequence)]
    visual = VISUAL[topology.sequence]
    return text, [cut(manager, order, text, SLOTS, visual) for manager in managers]


@pytest.mark.parametrize(("topology", "order"), WAYS)
def test_shards_are_the_batch(topology, order):
    text, found = shards(topology, order)
    places = torch.cat([shard.places for shard in found])
    assert sorted(places.tolist()) == list(range(len(places)))
    pairs = [
        ("input_ids", "ids"),
        ("position_ids", "position_ids"),
        ("targets", "targets"),
        ("weights", "weights"),
    ]
    for key, name in pairs:
        whole = torch.empty(2, len(places), dtype=text[key].dtype)
        whole[:, places] = torch.cat([getattr(shard, name) for shard in found], dim=1)
        assert torch.equal(whole[:, :11], text[key])
        assert (whole[:, 11:] == (IGNORE_INDEX if key == "targets" else 0)).all()
    learned = text["targets"] != IGNORE_INDEX
    assert all(shard.num_targets == (text["weights"] * learned).sum() for shard in found)


@pytest.mark.parametrize(("topology", "order"), WAYS)
def test_visual_tokens_arrive_in_the_order_of_slots(topology, order):
    _, found = shards(topology, order)
    numbers = np.split(np.arange(10), np.cumsum(VISUAL[topology.sequence])[:-1])
    sent = [
        np.split(own[shard.order], np.cumsum(shard.send)[:-1])
        for own, shard in zip(numbers, found, strict=True)
    ]
    slot_number = torch.cumsum(SLOTS.flatten().long(), 0).view(2, 11) - 1
    for rank, shard in enumerate(found):
        arrived = np.concatenate([parts[rank] for parts in sent])
        assert [len(parts[rank]) for parts in sent] == shard.receive
        real = shard.places[shard.places < 11]
        assert arrived.tolist() == slot_number[:, real][SLOTS[:, real]].tolist()


def test_counts_that_differ_are_refused():
    with pytest.raises(ValueError, match="3 slots.*2 visual tokens"):
        route(np.zeros(3, dtype=int), [1, 1], 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 6}, "6 heads cannot be dealt to 4"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows"),
    ],
)
def test_models_that_a_team_cannot_run_are_refused(config, message):
    settings = {"num_attention_heads": 4, "num_key_value_heads": 2, **config}
    team = SequenceTeam(SimpleNamespace(topology=Topology(4, 4, 1), sequence_rank=0))
    with pytest.raises(ValueError, match=message):
        join(SimpleNamespace(config=SimpleNamespace(**settings)), team)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="ring type 'stripe'"):
        SequenceTeam(SimpleNamespace(topology=Topology(2, 2, 2), sequence_rank=0), "stripe")
