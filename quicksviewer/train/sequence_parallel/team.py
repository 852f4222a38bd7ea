"""What the model calls when several processes share a batch: `Team` of model/team.py, over process groups."""

from collections.abc import Sequence

from torch import Tensor

from quicksviewer.model.team import Team, TextShard
from quicksviewer.train.sequence_parallel import comm
from quicksviewer.train.sequence_parallel.attention import key_heads, register
from quicksviewer.train.sequence_parallel.groups import ProcessGroupManager
from quicksviewer.train.sequence_parallel.inputs import cut
from quicksviewer.train.sequence_parallel.plan import ORDERS
from quicksviewer.utils.registry import lookup


class SequenceTeam(Team):
    """The team of this process. `order`: how rows are cut for the ring, a key of `plan.ORDERS`."""

    def __init__(self, manager: ProcessGroupManager, order: str = "ring_varlen"):
        lookup(ORDERS, order, "ring type")
        self.manager, self.order = manager, order
        self.size, self.rank = manager.topology.sequence, manager.sequence_rank

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        return comm.gather(rows, counts, self.manager.sequence)

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        return comm.exchange(rows, send, receive, self.manager.sequence)

    def total(self, x: Tensor) -> Tensor:
        return comm.total(x, self.manager.sequence)

    def cut(self, text: dict[str, Tensor | None], is_slot_BT: Tensor, visual: Sequence[int]) -> TextShard:
        return cut(self.manager, self.order, text, is_slot_BT, visual)


def join(model, team: SequenceTeam) -> None:
    """Let a model share its batches with a team: its language model attends through the team from now on.

    ValueError for a model whose attention the team cannot compute: heads that cannot be dealt, dropout of
    attention weights, sliding windows.
    """
    config = model.config
    key_heads(config.num_attention_heads, config.num_key_value_heads, team.manager.topology.ulysses)
    if dropout := getattr(config, "attention_dropout", 0.0):
        raise ValueError(f"no sequence parallelism with attention_dropout={dropout}; set it to 0")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError("no sequence parallelism with sliding windows; set use_sliding_window to false")
    model.team = team
    if team.size > 1:
        config._attn_implementation = register()
