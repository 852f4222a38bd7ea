"""What cubes do over the steps between two log lines: their lengths, how sure the gate is, signs of collapse.

Everything is added up on the device; nothing waits for it before a report. Letters: N frames, M media, C
cubes, S pixels of a side.
"""

import math

import torch
from torch import Tensor

from quicksviewer.model.multimodal_cubing.base import Cuts, to_device
from quicksviewer.utils.colours import SHOT, colour_changes
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
BROKEN = ("broken", "broken_gates")
"""Frames whose features, and gates whose logits, are no finite numbers."""
NUMBERS = (
    *("gates", "entropy", "videos", "collapsed", "seconds", "video_cubes", "gradient", "shots", "shots_cut"),
    *BROKEN,
)
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

    def add(self, cuts: Cuts, times_N: Tensor | None = None, pixels_N3SS: Tensor | None = None) -> None:
        """The cuts of a batch; the seconds and the pixels of its frames, where they are known."""
        length_C = cube_lengths(cuts)
        place_C = torch.bucketize(length_C, to_device(EDGES, length_C.device))
        self.lengths.index_add_(0, place_C, torch.ones_like(place_C, dtype=torch.float32))
        start_M = self._add_videos(cuts, length_C, times_N)
        if pixels_N3SS is not None:
            self._add_shots(cuts, start_M, pixels_N3SS)
        if cuts.broken is not None:
            self.sums["broken"] += cuts.broken
        if cuts.gate_logits is not None:
            self._add_gate(cuts.gate_logits)

    def _add_videos(self, cuts: Cuts, length_C: Tensor, times_N: Tensor | None) -> Tensor:
        """The first frame of each medium: (M,).

        A video is collapsed when one cube holds all that the others, of one frame each, leave. The time of a
        video is that from its first frame to its last, and one frame more.
        """
        cubes_M = to_device(cuts.cubes, length_C.device)
        medium_C = torch.arange(len(cubes_M), device=length_C.device)
        medium_C = medium_C.repeat_interleave(cubes_M, output_size=len(length_C))
        frames_M = torch.zeros_like(cubes_M).index_add(0, medium_C, length_C)
        longest_M = torch.zeros_like(cubes_M).scatter_reduce(0, medium_C, length_C, "amax")
        is_video_M = (cubes_M >= LEAST_CUBES) & (frames_M > cubes_M)
        self.sums["videos"] += is_video_M.sum()
        self.sums["collapsed"] += (is_video_M & (longest_M == frames_M - cubes_M + 1)).sum()
        last_M = frames_M.cumsum(0) - 1
        start_M = last_M - frames_M + 1
        if times_N is not None:
            seconds_M = (times_N[last_M] - times_N[start_M]) * frames_M / (frames_M - 1).clamp_min(1)
            self.sums["seconds"] += seconds_M.sum()
            self.sums["video_cubes"] += (cubes_M * (frames_M > 1)).sum()
        return start_M

    def _add_shots(self, cuts: Cuts, start_M: Tensor, pixels_N3SS: Tensor) -> None:
        """Frames that begin a shot by their colours, and how many of them open a cube."""
        shot_N = (colour_changes(pixels_N3SS) > SHOT).index_fill(0, start_M, False)
        self.sums["shots"] += shot_N.sum()
        self.sums["shots_cut"] += shot_N[cuts.first_frame].sum()

    def _add_gate(self, logits_G2: Tensor) -> None:
        """Entropy in bits of each gate, and, when it comes, the gradient that reaches the gates."""
        log_G2 = logits_G2.detach().log_softmax(dim=-1)
        self.sums["broken_gates"] += (~log_G2.isfinite()).any(dim=-1).sum()
        self.sums["entropy"] -= (log_G2.exp() * log_G2).sum() / math.log(2)
        self.sums["gates"] += len(logits_G2)
        if logits_G2.requires_grad:
            sums = self.sums  # those of this stretch, also when the gradient comes after a report

            def note(gradient: Tensor) -> None:
                sums["gradient"] += gradient.float().square().sum()

            logits_G2.register_hook(note)

    def broken(self) -> Tensor:
        """The numbers of BROKEN since the last report, of this rank: (2,) on the device."""
        return torch.stack([self.sums[name] for name in BROKEN])

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
        if numbers["shots"]:
            logs["shots_cut"] = numbers["shots_cut"] / numbers["shots"]
        return logs | {name: numbers[name] for name in BROKEN if numbers[name]}


def cube_lengths(cuts: Cuts) -> Tensor:
    """Frames of every cube: (C,) int64. `bincount` would wait for the device."""
    cube_N = cuts.cube_of_frame
    return cube_N.new_zeros(sum(cuts.cubes)).index_add_(0, cube_N, torch.ones_like(cube_N))


def check_cubes(logs: dict[str, float]) -> None:
    """Ends the run on features or gates that are no numbers; warns when the gate has collapsed. Reads log
    entries."""
    refuse_broken_counts([logs.get(name, 0) for name in BROKEN], "since the last log")
    if logs.get("collapsed_videos", 0) >= ALARM:
        logger.warning(
            "cubing has collapsed on %.0f%% of the videos: one cube holds all frames that the others, of one "
            "frame each, leave; set min_cube_frames, or lower the cubing's learning rate",
            100 * logs["collapsed_videos"],
        )


def refuse_broken_counts(counts: list[float], when: str) -> None:
    """FloatingPointError that says when and in which part, if any of the numbers of BROKEN is not 0."""
    frames, gates = counts
    if not (frames or gates):
        return
    what = (
        f"the features of {frames:.0f} frames (part vision_tower)"
        if frames
        else f"the logits of {gates:.0f} gates (part cubing), whose features are finite,"
    )
    raise FloatingPointError(
        f"{when}: {what} are no finite numbers. Go on from an earlier checkpoint with a smaller learning "
        "rate; evaluate it first on the same data, which names the video if one is to blame"
    )
