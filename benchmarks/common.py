"""What benchmark programs share: timing in turns with an interval, peak memory of a child, counted calls."""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

RESAMPLES = 2000
"""Bootstrap samples of an interval."""
GIVE_BACK_BYTES = 1 << 20
"""In children larger blocks go back to the system when freed, so that a peak is what was alive, not holes."""


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every side, in turns: A B A B ..., after one call of each that does not count."""
    for work in sides.values():
        work()
    rounds = [{name: seconds_of(work) for name, work in sides.items()} for _ in range(repeats)]
    return {name: [times[name] for times in rounds] for name in sides}


def ratio_row(peer: list[float], ours: list[float], target: float) -> dict:
    """Median of peer over ours, round by round, with its bootstrap 95% interval; the lower end decides."""
    ratios = [theirs / mine for theirs, mine in zip(peer, ours, strict=True)]
    low, high = median_interval(ratios)
    figures = {"median": statistics.median(ratios), "low": low, "high": high}
    return {
        "peer_s": round(statistics.median(peer), 5),
        "ours_s": round(statistics.median(ours), 5),
        "ratio": {name: round(value, 2) for name, value in figures.items()},
        "target": target,
        "pass": low >= target,
    }


def median_interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95% interval of the median."""
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]


def extra_peak_mib(work: Callable[[], object]) -> float:
    """MiB by which a call raises this process's memory at its highest (Linux). Call it in a fresh child."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = memory_kib("VmRSS")
    work()
    return (memory_kib("VmHWM") - before) / 1024


def memory_kib(field: str) -> int:
    """A line of /proc/self/status, such as VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def in_child(program: str, *flags: object, give_back: int = GIVE_BACK_BYTES) -> dict:
    """Run a benchmark program again with other flags; the JSON that it prints last."""
    command = [sys.executable, program, *map(str, flags)]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(give_back)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class CountCalls(TorchDispatchMode):
    """Counts the ATen operations that run inside it, those of the backward pass too."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def aten_calls(work: Callable[[], object]) -> int:
    """How many ATen operations a call makes."""
    with CountCalls() as counter:
        work()
    return counter.calls


def largest_error(values: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference from a float64 result, as a share of its largest entry."""
    return float((values.double() - exact).abs().max() / exact.abs().max())
