"""A batch that all ranks of a team hold, cut among them: ids, targets, positions, slots of visual tokens.

Ids are cut before they are embedded, so that no rank ever holds the embeddings of the whole sequence. Targets
are shifted before, so that the last token of a shard predicts the first of the next one.
Letters: B rows, T tokens of a whole row.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.model.team import TextShard, own_slice
from quicksviewer.train.sequence_parallel.groups import ProcessGroupManager
from quicksviewer.train.sequence_parallel.plan import SequencePlan

FILL = {"input_ids": 0, "segment_ids": 0, "position_ids": 0, "targets": IGNORE_INDEX, "weights": 0}
"""What rows are lengthened with, until they can be cut."""


def cut(
    manager: ProcessGroupManager,
    order: str,
    text: dict[str, Tensor | None],
    is_slot_BT: Tensor,
    visual: Sequence[int],
) -> TextShard:
    """See `Team.cut`. Documents and slots are read from the device, once for the whole batch."""
    length = is_slot_BT.shape[1]
    more = SequencePlan.padded_length(manager.topology, order, length) - length
    rows = {key: F.pad(x, (0, more), value=FILL[key]) for key, x in text.items() if x is not None}
    host = torch.stack([rows["segment_ids"], F.pad(is_slot_BT, (0, more)).long()]).cpu().numpy()
    plan = SequencePlan(manager.topology, order, host[0])
    rank, device = manager.sequence_rank, is_slot_BT.device
    moves, send, receive = route(plan.owners()[np.nonzero(host[1])[1]], visual, rank)
    places = torch.from_numpy(plan.places(rank)).to(device)
    shard = {key: x[:, places] for key, x in rows.items()}
    return TextShard(
        ids=shard["input_ids"],
        position_ids=shard["position_ids"],
        places=places,
        targets=shard.get("targets"),
        weights=shard.get("weights"),
        num_targets=_weight(rows.get("targets"), rows.get("weights")),
        order=torch.from_numpy(moves).to(device),
        send=send,
        receive=receive,
        attention={"sequence": (plan, manager)},
    )


def _weight(targets_BT: Tensor | None, weights_BT: Tensor | None) -> Tensor | None:
    """How many targets a batch has, or what they weigh together."""
    if targets_BT is None:
        return None
    learned_BT = targets_BT != IGNORE_INDEX
    return learned_BT.sum() if weights_BT is None else (weights_BT * learned_BT).sum()


def route(
    owner_of_slot: np.ndarray, visual: Sequence[int], rank: int
) -> tuple[np.ndarray, list[int], list[int]]:
    """How visual tokens get from the ranks that made them to those that need them.

    `owner_of_slot`: the rank of every slot of the batch, rows first; rank i made the tokens of the next
    `visual[i]` slots. Returns this rank's tokens in the order in which they leave, how many go to every rank,
    and how many come. They arrive in the order of slots, because makers and slots have the same order.
    """
    if len(owner_of_slot) != sum(visual):
        raise ValueError(f"{len(owner_of_slot)} slots for visual tokens, but {sum(visual)} visual tokens")
    made = [owner_of_slot[own_slice(visual, maker)] for maker in range(len(visual))]
    if not made:
        return np.zeros(0, dtype=np.int64), [], []
    order = np.argsort(made[rank], kind="stable")
    send = np.bincount(made[rank], minlength=len(visual)).tolist()
    return order, send, [int((owners == rank).sum()) for owners in made]
