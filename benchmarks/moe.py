"""Sixteen experts, two per token: sorted segments against the loop over experts with boolean masks.

    python benchmarks/moe.py [--repeats 9] [--device cuda]

Forward and backward pass of one mixture without its router, which both sides share. The peer is the loop of
small code for mixtures: `y[chosen == i] = expert_i(x[chosen == i])` for every expert. First both are shown to
be equal, then times are taken in turns, of the clock and (`processor`) of the processor alone. Memory is the
most that new tensors hold at a time (`live_mib`), and on a CPU also what a child for each side takes from the
system, whose grain is a MiB. Prints one JSON.
Which side wins by how much depends on what is not matrix product: many tokens and narrow experts, or so few
tokens that calls cost more than products. Wide experts cost the same on both sides.
"""

import argparse
import json
import time
import weakref

import torch
from common import aten_calls, extra_peak_mib, in_child, interleaved, ratio_row
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quicksviewer.minimind.config import llmconfig
from quicksviewer.minimind.layers import FeedForward
from quicksviewer.minimind.moe import Experts

EXPERTS, CHOSEN, TARGET, TOLERANCE = 16, 2, 3.0, 1e-5
SIZES = {
    "few tokens": (128, 64, 32),
    "debug": (256, 64, 128),
    "narrow experts": (8192, 512, 64),
    "tiny": (2048, 256, 512),
}
"""Name -> tokens, width of the model, width of an expert."""


def problem(size: str, device: str):
    """The config, tokens (N, D), weights and experts of every token (N, K), and the same weights for both
    sides."""
    tokens, width, inner = SIZES[size]
    torch.manual_seed(0)
    config = llmconfig(
        hidden_size=width,
        num_attention_heads=1,
        intermediate_size=inner,
        use_moe=True,
        n_routed_experts=EXPERTS,
        num_experts_per_token=CHOSEN,
    )
    ours = Experts(config)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=width**-0.5)
    loop = nn.ModuleList(FeedForward(config, inner) for _ in range(EXPERTS))
    with torch.no_grad():
        for i, expert in enumerate(loop):
            expert.gate_proj.weight.copy_(ours.gate_up_proj[i, :inner])
            expert.up_proj.weight.copy_(ours.gate_up_proj[i, inner:])
            expert.down_proj.weight.copy_(ours.down_proj[i])
    x = torch.randn(tokens, width, device=device, requires_grad=True)
    weights, chosen = torch.randn(tokens, EXPERTS, device=device).softmax(-1).topk(CHOSEN, dim=-1)
    return ours.to(device), loop.to(device), x, weights.requires_grad_(), chosen


def masked_loop(experts, x, weights, chosen):
    """The peer."""
    repeated, flat = x.repeat_interleave(CHOSEN, dim=0), chosen.flatten()
    y = torch.empty_like(repeated)
    for i, expert in enumerate(experts):
        y[flat == i] = expert(repeated[flat == i])
    return (y.unflatten(0, weights.shape) * weights[..., None]).sum(dim=1)


def step(side: str, data) -> list[torch.Tensor]:
    """Output, and the gradients of tokens, weights and experts: those of all experts as two tensors."""
    ours, loop, x, weights, chosen = data
    if side == "ours":
        out = ours(x, weights, chosen)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, weights, *ours.parameters()])]
    out = masked_loop(loop, x, weights, chosen)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, weights, *loop.parameters()])]


def in_our_form(found: list[torch.Tensor]) -> list[torch.Tensor]:
    """The peer's result with its gradients stacked by expert."""
    gates, ups, downs = (torch.stack(found[3 + i :: 3]) for i in range(3))
    return [*found[:3], torch.cat([gates, ups], dim=1), downs]


def largest_difference(data) -> float:
    """Of outputs and all gradients, as a share of each one's largest entry."""
    pairs = zip(step("ours", data), in_our_form(step("loop", data)), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


class LiveTensors(TorchDispatchMode):
    """The most bytes that tensors which came into being inside it hold at a time."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.most = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {
            x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), given)
        return out

    def _add(self, storage, given: set[int]) -> None:
        key = storage._cdata
        if key in self.known or key in given:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def live_mib(work) -> float:
    """MiB of LiveTensors in a call."""
    with LiveTensors() as live:
        work()
    return live.most / 2**20


def processor_seconds(side: str, data) -> float:
    """What a step takes of the processor: other work on the machine adds little to it."""
    before = time.process_time()
    step(side, data)
    return time.process_time() - before


def row(size: str, repeats: int, device: str) -> dict:
    data = problem(size, device)
    difference = largest_difference(data)
    assert difference <= TOLERANCE, f"{size}: the sides differ by {difference}"

    def work(side: str):
        step(side, data)
        if device == "cuda":
            torch.cuda.synchronize()

    times = interleaved({side: lambda side=side: work(side) for side in ("loop", "ours")}, repeats)
    calls = {side: aten_calls(lambda side=side: step(side, data)) for side in ("loop", "ours")}
    live = {side: round(live_mib(lambda side=side: step(side, data)), 3) for side in ("loop", "ours")}
    out = {"shape": SIZES[size], "difference": difference, "aten_calls": calls, "live_mib": live}
    out["memory_ok"] = live["ours"] <= live["loop"]
    if device == "cpu":
        flags = ("--size", size, "--child")
        rounds = [[processor_seconds(side, data) for side in ("loop", "ours")] for _ in range(repeats)]
        out["processor"] = ratio_row(*zip(*rounds, strict=True), TARGET)
        out["extra_mib"] = {s: round(in_child(__file__, *flags, s)["mib"], 1) for s in ("loop", "ours")}
    return out | ratio_row(times["loop"], times["ours"], TARGET)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", choices=SIZES, help="one of the sizes; all without it")
    parser.add_argument("--child", choices=("loop", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        step(args.child, problem("few tokens", "cpu"))  # so that what is loaded on first use does not count
        data = problem(args.size, "cpu")
        print(json.dumps({"mib": extra_peak_mib(lambda: step(args.child, data))}))
        return 0
    sizes = [args.size] if args.size else list(SIZES)
    rows = {size: row(size, args.repeats, args.device) for size in sizes}
    print(json.dumps({"experts": EXPERTS, "chosen": CHOSEN, "device": args.device, "sizes": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
