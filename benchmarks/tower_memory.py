"""Peak memory of a frozen vision tower over many frames, against the same tower asked for all hidden states.

    python benchmarks/tower_memory.py [--frames 64]

Each side runs in a child process, so that its peak is its own; outputs are compared first. Prints one JSON.
The other side is what video models commonly do: all frames at once, output_hidden_states=True, one used.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch

SHAPE = dict(
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=6,
    image_size=224,
    patch_size=14,
)


def tower():
    from quicksviewer.model.config import TowerConfig
    from quicksviewer.model.multimodal_encoder.builder import build_tower

    torch.manual_seed(0)
    return build_tower(TowerConfig(kind="siglip", hf=SHAPE, frames_per_chunk=8)).requires_grad_(False)


def run_ours(model, pixels):
    return model(pixels)


def run_naive(model, pixels):
    with torch.no_grad():
        return model.vision(pixel_values=model.normalise(pixels), output_hidden_states=True).last_hidden_state


SIDES = {"ours": run_ours, "naive": run_naive}


def child(side: str, frames: int) -> None:
    """Run one side; print its peak memory above the start, in MiB, and a checksum of its output."""
    model = tower()
    pixels = torch.randint(
        0, 256, (frames, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = SIDES[side](model, pixels)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        json.dumps(
            {"mib": round(peak, 1), "sum": float(out.double().sum()), "square": float(out.double().norm())}
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.frames)
        return 0
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--frames", str(args.frames), "--child", side]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    for key in ("sum", "square"):
        ours, naive = found["ours"][key], found["naive"][key]
        if abs(ours - naive) > 1e-4 * max(abs(naive), 1.0):
            raise SystemExit(f"outputs differ: {key} {ours} and {naive}")
    ratio = found["naive"]["mib"] / found["ours"]["mib"]
    mib = {side: row["mib"] for side, row in found.items()}
    print(json.dumps({"frames": args.frames, "peak_mib": mib, "naive_over_ours": round(ratio, 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
