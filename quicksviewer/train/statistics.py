"""What a run tells between two log lines, summed on the device over steps and, when it is told, over
ranks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from quicksviewer.data.collator import sample_numbers, targets_of
from quicksviewer.model.multimodal_cubing.base import Cuts
from quicksviewer.train.cube_statistics import CubeStatistics, cube_lengths

SUMS = ("loss_tokens", "loss_gate", "cubes", "frames", "single", "longest")
"""All sums are the same on every rank, whatever its rows hold, so that ranks can add them up."""


class Statistics:
    """Parts of the loss and lengths of cubes since the last report. Nothing is read from the device before
    it."""

    def __init__(self, device):
        self.device, self.cubes = device, CubeStatistics(device)
        self.clear()

    def clear(self) -> None:
        self.steps, self.groups = 0, {}
        self.cubes.clear()
        self.sums = {name: torch.zeros((), device=self.device) for name in SUMS}

    def add_loss(self, name: str, loss) -> None:
        self.sums[name] += loss.detach().float()

    def add_cuts(self, cuts: Cuts | None, times_N=None, pixels_N3SS=None) -> None:
        """Lengths of the cubes of a batch, in frames. Images count as cubes of one frame."""
        if cuts is None:
            return
        self.cubes.add(cuts, times_N, pixels_N3SS)
        lengths = cube_lengths(cuts)
        self.sums["cubes"] += len(lengths)
        self.sums["frames"] += lengths.sum()
        self.sums["single"] += (lengths == 1).sum()
        self.sums["longest"] = torch.maximum(self.sums["longest"], lengths.max().float())

    def add_groups(self, losses_BT, batch: dict, groups: list[tuple[str, ...]]) -> None:
        """Losses of the samples of a batch, added under the names of each (source, modality). Left out where
        this process has not the losses of whole samples: in a team, or without the linear loss."""
        labels_BT = batch["labels"]
        if losses_BT is None or losses_BT.shape != labels_BT.shape:
            return
        learned_BT = targets_of(labels_BT)
        number_BT = sample_numbers(labels_BT, batch.get("segment_ids"))
        pairs = torch.stack([F.pad(losses_BT[:, :-1], (1, 0)).flatten(), learned_BT.flatten().float()], dim=1)
        sums = torch.zeros(len(groups), 2, device=pairs.device).index_add(0, number_BT.flatten(), pairs)
        names = sorted({name for group in groups for name in group})
        member = torch.tensor([[float(name in group) for group in groups] for name in names]).to(sums.device)
        for name, pair in zip(names, member @ sums, strict=True):
            self.groups[name] = self.groups.get(name, 0) + pair

    def _report_groups(self) -> dict[str, float]:
        """Mean loss of a target token under every name that any rank has seen."""
        names = sorted(self.groups)
        if dist.is_initialized():
            told = [None] * dist.get_world_size()
            dist.all_gather_object(told, names)
            names = sorted(set().union(*told))
        if not names:
            return {}
        none = torch.zeros(2, device=self.device)
        pairs = torch.stack([self.groups.get(name, none) for name in names])
        if dist.is_initialized():
            dist.all_reduce(pairs)
        pairs = zip(names, pairs.tolist(), strict=True)
        return {f"loss/{name}": loss / count for name, (loss, count) in pairs if count}

    def report(self, tokens_per_cube: int) -> dict[str, float]:
        """The log entries since the last report, over all ranks; starts anew. Every rank must call it."""
        longest, steps = self.sums.pop("longest"), max(self.steps, 1)
        sums = torch.cat([torch.stack(list(self.sums.values())), self.cubes.vector()])
        size = 1
        if dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            size = dist.get_world_size()
        tokens, gate, cubes, frames, single, *rest = sums.tolist()
        logs = {"loss_tokens": tokens / steps / size, "loss_gate": gate / steps / size}
        if cubes:
            logs |= {"frames_per_cube": frames / cubes, "share_of_one_frame_cubes": single / cubes}
            logs["longest_cube"] = float(longest)
        logs |= CubeStatistics.logs(rest, tokens_per_cube, steps)
        logs |= self._report_groups()
        self.clear()
        return logs
