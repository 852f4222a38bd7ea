"""What a run tells between two log lines, summed on the device over steps and, when it is told, over
ranks."""

import torch
import torch.distributed as dist

from quicksviewer.model.multimodal_cubing.base import Cuts

SUMS = ("loss_tokens", "loss_gate", "cubes", "frames", "single", "longest")
"""All sums are the same on every rank, whatever its rows hold, so that ranks can add them up."""


class Statistics:
    """Parts of the loss and lengths of cubes since the last report. Nothing is read from the device before
    it."""

    def __init__(self, device):
        self.device = device
        self.clear()

    def clear(self) -> None:
        self.steps = 0
        self.sums = {name: torch.zeros((), device=self.device) for name in SUMS}

    def add_loss(self, name: str, loss) -> None:
        self.sums[name] += loss.detach().float()

    def add_cuts(self, cuts: Cuts | None) -> None:
        """Lengths of the cubes of a batch, in frames. Images count as cubes of one frame."""
        if cuts is None:
            return
        lengths = torch.bincount(cuts.cube_of_frame, minlength=sum(cuts.cubes))
        self.sums["cubes"] += len(lengths)
        self.sums["frames"] += lengths.sum()
        self.sums["single"] += (lengths == 1).sum()
        self.sums["longest"] = torch.maximum(self.sums["longest"], lengths.max().float())

    def report(self) -> dict[str, float]:
        """The log entries since the last report, over all ranks; starts anew. Every rank must call it."""
        longest, steps = self.sums.pop("longest"), max(self.steps, 1)
        sums = torch.stack(list(self.sums.values()))
        size = 1
        if dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            size = dist.get_world_size()
        tokens, gate, cubes, frames, single = sums.tolist()
        logs = {"loss_tokens": tokens / steps / size, "loss_gate": gate / steps / size}
        if cubes:
            logs |= {"frames_per_cube": frames / cubes, "share_of_one_frame_cubes": single / cubes}
            logs["longest_cube"] = float(longest)
        self.clear()
        return logs
