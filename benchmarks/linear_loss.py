"""Cross-entropy of 4,096 tokens over 152,064 words without their logits, against transformers' (P6).

    pip install cut-cross-entropy triton    # a second peer; without it that row is left out, and said so
    python benchmarks/linear_loss.py [--width 64]

Float32 on the CPU; gradients of hidden states and weight are part of the work. Memory is measured in a child
for each side, gradients included. Errors are against float64 on fewer words. Prints one JSON.
"""

import argparse
import json

import torch
from common import extra_peak_mib, in_child, interleaved, largest_error, ratio_row
from transformers.loss.loss_utils import ForCausalLMLoss

from quicksviewer.model.linear_loss import linear_cross_entropy

TOKENS, WORDS = 4096, 152_064


def problem(width: int, tokens: int = TOKENS, words: int = WORDS):
    """Hidden states (T, D), weight (V, D), labels (T,): every token but the first is a target."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (torch.randn(words, width, generator=generator) / width**0.5).requires_grad_()
    return hidden, weight, torch.randint(0, words, (tokens,), generator=generator)


def ours(hidden, weight, labels):
    return linear_cross_entropy(hidden[:-1], weight, labels[1:]) / (len(labels) - 1)


def usual(hidden, weight, labels):
    return ForCausalLMLoss(hidden[None] @ weight.T, labels[None], weight.shape[0], len(labels) - 1)


def cut(hidden, weight, labels):
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, labels, shift=1, impl="torch_compile")


SIDES = {"ours": ours, "hf": usual, "cce": cut}


def step(side: str, data) -> list[torch.Tensor]:
    """Loss and both gradients."""
    loss = SIDES[side](*data)
    return [loss.detach(), *torch.autograd.grad(loss, data[:2])]


def has_cce() -> str | None:
    """Why the second peer cannot run, or None."""
    try:
        import cut_cross_entropy  # noqa: F401
    except ImportError as error:
        return f"not run: {error}"
    return None


def errors(width: int) -> dict:
    """Largest error of loss and gradients against float64, as a share of the largest entry."""
    data = problem(width, 512, 20_000)
    wide = [t.detach().double().requires_grad_() for t in data[:2]]
    losses = torch.nn.functional.cross_entropy(wide[0][:-1] @ wide[1].T, data[2][1:])
    exact = [losses.detach(), *torch.autograd.grad(losses, wide)]
    names = ("loss", "d_hidden", "d_weight")
    return {
        side: {n: largest_error(v, e) for n, v, e in zip(names, step(side, data), exact, strict=True)}
        for side in ("ours", "hf")
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    data = problem(args.width)
    if args.child:
        print(json.dumps({"mib": extra_peak_mib(lambda: step(args.child, data))}))
        return 0
    missing = has_cce()
    sides = [side for side in SIDES if side != "cce" or missing is None]
    first, again = step("ours", data), step("ours", data)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "every run gives the same bits"
    mib = {side: round(in_child(__file__, "--width", args.width, "--child", side)["mib"]) for side in sides}
    times = interleaved({side: lambda side=side: step(side, data) for side in sides}, args.repeats)
    out = {"tokens": TOKENS, "words": WORDS, "width": args.width, "threads": torch.get_num_threads()}
    out |= {
        "peak_mib": mib,
        "memory_hf_over_ours": round(mib["hf"] / mib["ours"], 1),
        "error": errors(args.width),
    }
    out["time"] = {side: ratio_row(times[side], times["ours"], 1 / 1.1) for side in sides if side != "ours"}
    out["cce"] = missing or "torch_compile"
    out["pass"] = out["memory_hf_over_ours"] >= 10 and out["time"]["hf"]["pass"]
    print(json.dumps(out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
