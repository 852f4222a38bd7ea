"""Which experts are busy: shares, how far the busiest is above the mean, experts that nobody chooses.

    python -m quicksviewer.minimind.telemetry RUN_FOLDER [--out experts.png]

draws what a run has logged. Letters: L layers, E experts.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from quicksviewer.utils.registry import require

SHARE = re.compile(r"experts/layer_(\d+)/share_(\d+)")
"""How a share is named in the logs."""


class ExpertLoad:
    """Choices of experts, added up over batches on their device; nothing is read from it before a report."""

    def __init__(self):
        self.counts_LE: Tensor | None = None

    def add(self, counts_LE: Tensor | None) -> None:
        """`expert_counts` of a model's output; None, of a model without experts, adds nothing."""
        if counts_LE is not None:
            counts_LE = counts_LE.detach().double()
            self.counts_LE = counts_LE if self.counts_LE is None else self.counts_LE + counts_LE

    def shares(self) -> Tensor:
        """The share of its layer's choices that fell on each expert: float64 (L, E). ValueError before
        anything was added."""
        if self.counts_LE is None:
            raise ValueError("no expert has been counted: add() takes expert_counts of a model with experts")
        return self.counts_LE / self.counts_LE.sum(dim=1, keepdim=True).clamp(min=1)

    def report(self) -> dict[str, float]:
        """For logs: of the worst layer and of each, how often the mean the busiest expert is chosen, and how
        many are never; and every share. Empty before anything was added."""
        if self.counts_LE is None:
            return {}
        shares_LE = self.shares().cpu()
        above_L = (shares_LE.amax(dim=1) * shares_LE.shape[1]).tolist()
        dead_L = (shares_LE == 0).sum(dim=1).tolist()
        logs = {"experts/max_over_mean": max(above_L), "experts/dead": float(sum(dead_L))}
        for layer, shares in enumerate(shares_LE.tolist()):
            logs[f"experts/layer_{layer}/max_over_mean"] = above_L[layer]
            logs[f"experts/layer_{layer}/dead"] = float(dead_L[layer])
            logs |= {f"experts/layer_{layer}/share_{expert}": share for expert, share in enumerate(shares)}
        return logs

    def clear(self) -> None:
        self.counts_LE = None


def shares_in(logs: dict) -> Tensor | None:
    """The shares (L, E) that a log entry holds; None where it holds none."""
    found = {tuple(map(int, m.groups())): logs[key] for key in logs if (m := SHARE.fullmatch(key))}
    if not found:
        return None
    layers, experts = (max(place) + 1 for place in zip(*found, strict=True))
    return torch.tensor([[found[layer, expert] for expert in range(experts)] for layer in range(layers)])


def plot_load(history: list[dict], path: str | Path) -> None:
    """Draw log entries: shares of the last one as a map of layers and experts, and over the steps how far
    the busiest expert of each layer is above the mean. ValueError where no entry speaks of experts."""
    entries = [(entry, shares) for entry in history if (shares := shares_in(entry)) is not None]
    if not entries:
        raise ValueError("no log entry holds shares of experts: is it a run of a model with experts?")
    require("matplotlib", "data")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    now, course = figure.subplots(1, 2)
    shares_LE = entries[-1][1]
    image = now.imshow(shares_LE * shares_LE.shape[1], aspect="auto", vmin=0, cmap="viridis")
    for layer, expert in (shares_LE == 0).nonzero().tolist():
        now.text(expert, layer, "x", color="white", ha="center", va="center")
    now.set(xlabel="expert", ylabel="layer", title="share x experts (1 is even, x is never chosen)")
    figure.colorbar(image, ax=now)
    steps = [entry.get("step", i) for i, (entry, _) in enumerate(entries)]
    for layer in range(len(shares_LE)):
        above = [entry[f"experts/layer_{layer}/max_over_mean"] for entry, _ in entries]
        course.plot(steps, above, marker="o", label=f"layer {layer}")
    course.set(xlabel="step", ylabel="busiest expert / mean", title="balance")
    course.legend()
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    """Draw what a run has logged. 0 done, 1 nothing to draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the output folder of a run, with its trainer_state.json")
    parser.add_argument("--out", type=Path, help="the picture; by default experts.png in the run's folder")
    args = parser.parse_args(argv)
    out = args.out or args.run / "experts.png"
    try:
        plot_load(json.loads((args.run / "trainer_state.json").read_text())["log_history"], out)
    except (OSError, ValueError) as error:
        print(f"{args.run}: {error}")
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
