"""What cubes do over the steps between two log lines: their lengths, how sure the gate is, signs of collapse.

Everything is added up on the device; nothing is read from it before a report. Letters: M media, C cubes.
"""

import math

import torch
from torch import Tensor

from quicksviewer.model.multimodal_cubing.base import Cuts, to_device
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

EDGES = (1, 2, 4, 8, 16, 32)
"""Longest cube of each class of lengths but the last, in frames."""
CLASSES = [
    f"{low + 1}-{high}" if high > low + 1 else f"{high}"
    for low, high in zip((0, *EDGES), EDGES, strict=False)
] + [f"over_{EDGES[-1]}"]
LEAST_CUBES = 3
"""Videos with fewer cubes do not count as collapsed: with two, one is often long."""
NUMBERS = ("gates", "entropy", "videos", "collapsed", "broken", "seconds", "video_cubes", "gradient")
ALARM = 0.5
"""Share of collapsed videos from which the log raises an alarm."""


class CubeStatistics:
    """Sums of one rank since the last report, as one vector, so that ranks add them with one call."""

    def __init__(self, device):
        self.device = device
        self.clear()

    def clear(self) -> None:
        self.lengths = torch.zeros(len(CLASSES), device=self.device)
        self.sums = {name: torch.zeros((), device=self.device) for name in NUMBERS}

    def add(self, cuts: Cuts, times_N: Tensor | None = None) -> None:
        """The cuts of a batch, and the seconds of its frames if there are any."""
        length_C = torch.bincount(cuts.cube_of_frame, minlength=sum(cuts.cubes))
        self.lengths += torch.bincount(
            torch.bucketize(length_C, to_device(EDGES, length_C.device)), minlength=len(CLASSES)
        )
        self._add_videos(cuts, length_C, times_N)
        if cuts.broken is not None:
            self.sums["broken"] += cuts.broken
        if cuts.gate_logits is not None:
            self._add_gate(cuts.gate_logits)

    def _add_videos(self, cuts: Cuts, length_C: Tensor, times_N: Tensor | None) -> None:
        """A video is collapsed when one cube holds all that the others, of one frame each, leave.

        The time of a video is that from its first frame to its last, and one frame more.
        """
        cubes_M = to_device(cuts.cubes, length_C.device)
        medium_C = torch.arange(len(cubes_M), device=length_C.device)
        medium_C = medium_C.repeat_interleave(cubes_M, output_size=len(length_C))
        frames_M = torch.zeros_like(cubes_M).index_add(0, medium_C, length_C)
        longest_M = torch.zeros_like(cubes_M).scatter_reduce(0, medium_C, length_C, "amax")
        is_video_M = (cubes_M >= LEAST_CUBES) & (frames_M > cubes_M)
        self.sums["videos"] += is_video_M.sum()
        self.sums["collapsed"] += (is_video_M & (longest_M == frames_M - cubes_M + 1)).sum()
        if times_N is not None:
            last_M = frames_M.cumsum(0) - 1
            span_M = times_N[last_M] - times_N[last_M - frames_M + 1]
            seconds_M = span_M * frames_M / (frames_M - 1).clamp_min(1)
            self.sums["seconds"] += seconds_M.sum()
            self.sums["video_cubes"] += (cubes_M * (frames_M > 1)).sum()

    def _add_gate(self, logits_G2: Tensor) -> None:
        """Entropy in bits of each gate, and, when it comes, the gradient that reaches the gates."""
        log_G2 = logits_G2.detach().log_softmax(dim=-1)
        self.sums["entropy"] -= (log_G2.exp() * log_G2).sum() / math.log(2)
        self.sums["gates"] += len(logits_G2)
        if logits_G2.requires_grad:
            sums = self.sums  # those of this stretch, also when the gradient comes after a report

            def note(gradient: Tensor) -> None:
                sums["gradient"] += gradient.float().square().sum()

            logits_G2.register_hook(note)

    def vector(self) -> Tensor:
        """All sums, to be added over ranks."""
        return torch.cat([self.lengths, torch.stack(list(self.sums.values()))])

    @staticmethod
    def logs(totals: list[float], tokens_per_cube: int, steps: int) -> dict[str, float]:
        """Log entries from `vector`, summed over ranks and read from the device."""
        lengths, numbers = totals[: len(CLASSES)], dict(zip(NUMBERS, totals[len(CLASSES) :], strict=True))
        if not (cubes := sum(lengths)):
            return {}
        logs = {f"cubes/{name}": count / cubes for name, count in zip(CLASSES, lengths, strict=True)}
        if numbers["gates"]:
            logs["gate_entropy"] = numbers["entropy"] / numbers["gates"]
            logs["gate_grad_norm"] = (numbers["gradient"] / steps) ** 0.5
        if numbers["videos"]:
            logs["collapsed_videos"] = numbers["collapsed"] / numbers["videos"]
        if numbers["seconds"]:
            logs["tokens_per_second_of_video"] = numbers["video_cubes"] * tokens_per_cube / numbers["seconds"]
        if numbers["broken"]:
            logs["broken_frames"] = numbers["broken"]
        return logs


def check_cubes(logs: dict[str, float]) -> None:
    """Ends the run on features that are no numbers; warns when the gate has collapsed. Reads log entries."""
    if logs.get("broken_frames"):
        raise FloatingPointError(
            f"{logs['broken_frames']:.0f} frames since the last log have no finite features. "
            "Go on from an earlier checkpoint with a smaller learning rate; evaluate it first on the same "
            "data, which names the video if one is to blame"
        )
    if logs.get("collapsed_videos", 0) >= ALARM:
        logger.warning(
            "cubing has collapsed on %.0f%% of the videos: one cube holds all frames that the others, of one "
            "frame each, leave; set min_cube_frames, or lower the cubing's learning rate",
            100 * logs["collapsed_videos"],
        )
