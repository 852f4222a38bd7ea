"""P2: the 3D resampler, forward and backward: one call of nn.MultiheadAttention per cube against ours.

    python benchmarks/resampler.py [--width 448] [--patches 324] [--repeats 5]

A batch of 84 cubes: a video of 80 cubes of mixed lengths and four images. The peer is written from the
published description: per cube it projects, adds a dense table of positions to the keys, and calls
nn.MultiheadAttention with its defaults. Weights and inputs are the same. The default widths are an eighth of
the published ones (tower 1152, language model 3584, 28 heads). Prints one JSON.
"""

import argparse
import json
import math
import random
import sys
from types import SimpleNamespace

import torch
from common import aten_calls, extra_peak_mib, in_child, interleaved, ratio_row
from torch import Tensor, nn

from quicksviewer.model.config import ResamplerConfig
from quicksviewer.model.multimodal_resampler import build_resampler
from quicksviewer.model.multimodal_resampler.positions import axis_widths, sin_cos

CUBES, IMAGES, QUERIES, HEADS = 80, 4, 64, 4
TARGET_SPEED, TARGET_MEMORY, TARGET_CALLS, TARGET_DIFFERENCE = 3.0, 4.0, 20.0, 1e-5


class NaiveResampler(nn.Module):
    """Cube by cube, as published."""

    def __init__(self, vision_width: int, width: int, grid: int, longest: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(QUERIES, width))
        self.kv_proj = nn.Linear(vision_width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.empty(width, width))
        self.register_buffer("table", dense_table(width, grid, longest), persistent=False)

    def forward(self, tokens_NPD: Tensor, spans: list[tuple[int, int]], starts: list[int]) -> Tensor:
        """Frames [start, end) of every cube; the clock of a video starts at its first frame."""
        return torch.stack([self.one(tokens_NPD[a:b], t) for (a, b), t in zip(spans, starts, strict=True)])

    def one(self, cube_nPD: Tensor, first: int) -> Tensor:
        value_1SD = self.ln_kv(self.kv_proj(cube_nPD)).flatten(0, 1)[None]
        place_1SD = self.table[first : first + len(cube_nPD)].flatten(0, 2)[None]
        query_1QD = self.ln_q(self.query)[None]
        read_1QD, _ = self.attn(query_1QD, value_1SD + place_1SD, value_1SD)
        return self.ln_post(read_1QD[0]) @ self.proj


def dense_table(width: int, grid: int, longest: int) -> Tensor:
    """Positions of every frame, row and column: (longest, grid, grid, width)."""
    time, row, column = axis_widths(width)
    times, places = sin_cos(torch.arange(longest), time), torch.arange(grid)
    shape = (longest, grid, grid, -1)
    parts = [
        times[:, None, None].expand(shape),
        sin_cos(places, row)[None, :, None].expand(shape),
        sin_cos(places, column)[None, None].expand(shape),
    ]
    return torch.cat(parts, dim=-1).contiguous()


class Bench:
    """Inputs and both modules with the same weights."""

    def __init__(self, width: int, patches: int):
        rng = random.Random(1)
        lengths = [rng.choice((1, 1, 2, 3, 4, 5, 6, 8, 15)) for _ in range(CUBES)]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        film = ends[-1]
        self.spans = list(zip([0, *ends], ends, strict=False))
        self.spans += [(film + i, film + i + 1) for i in range(IMAGES)]
        self.starts = [a if a < film else 0 for a, _ in self.spans]
        counts = torch.tensor([b - a for a, b in self.spans])
        self.cube_of_frame = torch.arange(len(self.spans)).repeat_interleave(counts)
        self.times = torch.cat([torch.arange(film), torch.zeros(IMAGES)]).float()
        grid, vision_width = math.isqrt(patches), width * 9 // 28
        torch.manual_seed(0)
        tower = SimpleNamespace(hidden_size=vision_width, num_patches=patches)
        config = ResamplerConfig(queries=QUERIES, head_width=width // HEADS, time_unit="frames")
        self.ours = build_resampler(config, tower, width)
        self.naive = NaiveResampler(vision_width, width, grid, film)
        for name, parameter in self.ours.named_parameters():
            nn.init.normal_(parameter, std=0.05, mean=float(name.startswith("ln_") and "weight" in name))
        self.naive.load_state_dict(self.ours.state_dict())
        self.tokens = torch.randn(film + IMAGES, patches, vision_width)
        self.weight = torch.randn(len(self.spans), QUERIES, width) / width

    def run(self, side: str) -> tuple[Tensor, list[Tensor]]:
        """Tokens, and the gradients of the features and of all weights."""
        model = getattr(self, side)
        model.zero_grad(set_to_none=True)
        tokens = self.tokens.detach().requires_grad_()
        if side == "ours":
            out = model(tokens, self.cube_of_frame, len(self.spans), self.times)
        else:
            out = model(tokens, self.spans, self.starts)
        (out * self.weight).sum().backward()
        weights = dict(model.named_parameters())
        return out.detach(), [tokens.grad, *(weights[name].grad for name in sorted(weights))]


def differences(bench: Bench) -> dict[str, float]:
    """Largest difference of the tokens, and of the gradients as a share of a tensor's largest."""
    (ours, our_grads), (naive, naive_grads) = bench.run("ours"), bench.run("naive")
    found = {
        "tokens": float((ours - naive).abs().max()),
        "gradients": max(
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(our_grads, naive_grads, strict=True)
        ),
    }
    if max(found.values()) > TARGET_DIFFERENCE:
        raise SystemExit(f"the two differ by more than {TARGET_DIFFERENCE}: {found}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=448, help="of the language model")
    parser.add_argument("--patches", type=int, default=324)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", choices=("naive", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        Bench(56, 16).run(args.child)  # what a first call loads is not the subject
        bench = Bench(args.width, args.patches)
        print(json.dumps({"mib": round(extra_peak_mib(lambda: bench.run(args.child)), 1)}))
        return 0
    bench = Bench(args.width, args.patches)
    found = differences(bench)
    shape = ("--width", args.width, "--patches", args.patches)
    mib = {side: in_child(__file__, *shape, "--child", side)["mib"] for side in ("naive", "ours")}
    calls = {side: aten_calls(lambda s=side: bench.run(s)) for side in ("naive", "ours")}
    times = interleaved({side: lambda s=side: bench.run(s) for side in ("naive", "ours")}, args.repeats)
    saved, fewer = mib["naive"] / mib["ours"], calls["naive"] / calls["ours"]
    row = {
        "cubes": len(bench.spans),
        "frames": len(bench.tokens),
        "patches": args.patches,
        "width": args.width,
        "threads": torch.get_num_threads(),
        "difference": found,
        "speed": ratio_row(times["naive"], times["ours"], TARGET_SPEED),
        "extra_peak_mib": mib,
        "memory": {"ratio": round(saved, 2), "target": TARGET_MEMORY, "pass": saved >= TARGET_MEMORY},
        "aten_calls": calls,
        "calls": {"ratio": round(fewer, 1), "target": TARGET_CALLS, "pass": fewer >= TARGET_CALLS},
    }
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
