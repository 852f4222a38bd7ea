"""The loss of a model's routers in a run, and which experts were busy.

A micro-batch counts by its documents, so that a step has the same loss and gradient however its rows are
split over micro-batches, processes and packs.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from quicksviewer.minimind.telemetry import ExpertLoad


def count_documents(batch: dict) -> Tensor:
    """How many documents the rows of a batch hold, a scalar."""
    if batch.get("segment_ids") is None:
        return torch.tensor(len(batch["input_ids"]))
    return batch["segment_ids"].amax(dim=1).sum()


class RouterLoss:
    """What outputs of a model say of its routers. For a model without experts every method does nothing."""

    def __init__(self, config):
        self.has_experts = getattr(config, "use_moe", False)
        self._load, self._documents, self._sum, self._steps = ExpertLoad(), 1, 0.0, 0

    def begin_step(self, batches: list[dict], gather: Callable[[Tensor], Tensor], device) -> None:
        """Count the documents of an optimizer step, over all processes."""
        if self.has_experts:
            own = torch.stack([count_documents(batch) for batch in batches]).sum()
            self._documents = gather(own.to(device)[None]).sum().clamp(min=1)
            self._steps += 1

    def term(self, outputs, inputs: dict, processes: int) -> Tensor | None:
        """What to add to the loss of a micro-batch: its share of the mean over the step's documents, times
        the number of processes, because gradients are averaged over them. None outside of training."""
        if not self.has_experts or outputs.get("expert_counts") is None:
            return None
        loss = outputs["aux_loss"] * (count_documents(inputs) / self._documents * processes)
        self._sum = self._sum + loss.detach()
        self._load.add(outputs["expert_counts"])
        return loss

    def report(self) -> dict[str, float]:
        """The log entries since the last report, over all ranks; starts anew. Every rank must call it."""
        if not self._steps:
            return {}
        size = 1
        if dist.is_initialized():
            size = dist.get_world_size()
            dist.all_reduce(self._sum)
            dist.all_reduce(self._load.counts_LE)
        logs = {"loss_router": float(self._sum) / self._steps / size, **self._load.report()}
        self._load.clear()
        self._sum, self._steps = 0.0, 0
        return logs
