"""P1: the cubing gate, forward and backward: the published order of work against pooling first.

    python benchmarks/gate.py [--frames 128] [--width 1024] [--repeats 7]

The peer runs over frames in a Python loop and applies the aggregator to every patch before the mean. Weights
and inputs are the same. The tower is frozen (stage 1, so neither side needs gradients of the features) unless
`--tower` is given. Errors are those of the logits and weight gradients against float64. Prints one JSON.
"""

import argparse
import copy
import json
import sys

import torch
from common import extra_peak_mib, in_child, interleaved, largest_error, ratio_row
from torch import Tensor, nn

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing import build_cubing, pool_frames

PATCHES = 576
TARGET_SPEED, AIM_SPEED, TARGET_MEMORY = 50.0, 200.0, 50.0
ALPHA = 0.8
GIVE_BACK_BYTES = 1 << 17
"""A tensor of the pooled frames is half a MiB: with a larger limit freed ones would count as used."""


class NaiveGate(nn.Module):
    """The gate as published: momentum of all patches frame by frame, linear per patch, then the mean."""

    def __init__(self, width: int):
        super().__init__()
        self.agg_frame_fn = nn.Sequential(nn.Linear(width, width))
        self.proj_fn = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2)
        )

    def forward(self, frames_NPD: Tensor) -> Tensor:
        """Logits of the frames 1..N-1: (N - 1, 2)."""
        deltas = [frames_NPD[1] - frames_NPD[0]]
        for t in range(2, len(frames_NPD)):
            deltas.append(ALPHA * (frames_NPD[t] - frames_NPD[t - 1]) + (1 - ALPHA) * deltas[-1])
        return self.proj_fn(self.agg_frame_fn(torch.stack(deltas)).mean(dim=1))


class OurGate(nn.Module):
    """The project's cubing with the published settings, from patch tokens to logits."""

    def __init__(self, width: int):
        super().__init__()
        self.cubing = build_cubing(CubingConfig(energy_features=False, energy_prior=0.0, alpha=ALPHA), width)

    def forward(self, frames_NPD: Tensor) -> Tensor:
        return self.cubing(pool_frames(frames_NPD), [len(frames_NPD)], [True]).gate_logits


def sides(width: int) -> dict[str, nn.Module]:
    """Both, with the same weights."""
    torch.manual_seed(0)
    ours, naive = OurGate(width), NaiveGate(width)
    naive.load_state_dict(ours.cubing.state_dict())
    return {"naive": naive, "ours": ours}


def features(frames: int, width: int, tower: bool) -> Tensor:
    tokens = torch.randn(frames, PATCHES, width, generator=torch.Generator().manual_seed(1))
    return tokens.requires_grad_(tower)


def step(model: nn.Module, frames_NPD: Tensor) -> Tensor:
    """Forward and backward; the logits."""
    model.zero_grad(set_to_none=True)
    frames_NPD.grad = None
    logits = model(frames_NPD)
    logits.square().sum().backward()
    return logits.detach()


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def errors(width: int, frames: int = 24) -> dict[str, dict[str, float]]:
    """Errors of both against float64, on fewer frames: the loop in float64 is slow."""
    models, tokens = sides(width), features(frames, width, False)
    exact = copy.deepcopy(models["naive"]).double()
    logits = step(exact, tokens.double())
    found = {}
    for name, model in models.items():
        found[name] = {"logits": largest_error(step(model, tokens), logits)}
        found[name]["gradients"] = largest_error(gradients(model), gradients(exact))
    for kind in ("logits", "gradients"):
        if found["ours"][kind] > max(found["naive"][kind], 1e-6):
            raise SystemExit(f"ours is further from float64 than the loop: {found}")
    return found


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Extra peak of each side in its own child, MiB; gradients of features are a result, not counted."""
    shape = ("--frames", args.frames, "--width", args.width, *(["--tower"] if args.tower else []))
    result = args.frames * PATCHES * args.width * 4 / 2**20 if args.tower else 0.0
    return {
        name: in_child(__file__, *shape, "--child", name, give_back=GIVE_BACK_BYTES)["mib"] - result
        for name in ("naive", "ours")
    }


def child(args: argparse.Namespace) -> None:
    model = sides(args.width)[args.child]
    step(model, features(3, args.width, args.tower))  # what a first call loads is not the subject
    tokens = features(args.frames, args.width, args.tower)
    print(json.dumps({"mib": round(extra_peak_mib(lambda: step(model, tokens)), 2)}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tower", action="store_true", help="also gradients of the features")
    parser.add_argument("--child", choices=("naive", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return 0
    found = errors(args.width)
    mib = memory(args)
    tokens = features(args.frames, args.width, args.tower)
    work = {name: lambda m=model: step(m, tokens) for name, model in sides(args.width).items()}
    times = interleaved(work, args.repeats)
    saved = mib["naive"] / max(mib["ours"], 1e-3)
    row = {
        "shape": [args.frames, PATCHES, args.width],
        "threads": torch.get_num_threads(),
        "gradient_of_features": args.tower,
        "error_vs_float64": found,
        "speed": ratio_row(times["naive"], times["ours"], TARGET_SPEED) | {"aim": AIM_SPEED},
        "extra_peak_mib": {name: round(value, 2) for name, value in mib.items()},
        "memory": {"ratio": round(saved, 1), "target": TARGET_MEMORY, "pass": saved >= TARGET_MEMORY},
    }
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
