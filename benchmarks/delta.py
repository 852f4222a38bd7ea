"""Memory and time of a delta: a pair of 2 GB in bfloat16, made, verified and applied, each in a fresh child.

    python benchmarks/delta.py [--gigabytes 2] [--shards 4]

The result is compared with the target byte for byte. `peak_mib` is what a child takes beyond a child that
only imports; the target is below one and a half of the largest shard. The naive form, as the published tools
are written, loads both state dicts. Prints one JSON.
"""

import argparse
import filecmp
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import in_child
from safetensors.torch import save_file

from quicksviewer.model.delta import apply_delta, make_delta, verify_delta
from quicksviewer.model.raw_weights import INDEX, read_folder, weight_files

WIDTH = 4096
WORKS = {
    "make": lambda at: make_delta(at / "base", at / "target", at / "delta"),
    "verify": lambda at: verify_delta(at / "base", at / "delta"),
    "apply": lambda at: apply_delta(at / "base", at / "delta", at / "made"),
    "import": lambda at: None,
}


def write(folder: Path, shards: int, rows: int, scale: float) -> None:
    """A checkpoint of `shards` files with 8 tensors each; those of another `scale` are a little different."""
    folder.mkdir()
    places = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        generator = torch.Generator().manual_seed(shard)
        tensors = {
            f"layers.{shard}.{i}": torch.randn(rows, WIDTH, generator=generator)
            .mul_(scale)
            .to(torch.bfloat16)
            for i in range(8)
        }
        save_file(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def naive(at: Path) -> None:
    """Both state dicts in memory, every tensor subtracted."""
    base, target = (
        {name: _load(t) for name, t in read_folder(at / name_).items()} for name_ in ("base", "target")
    )
    save_file({name: target[name] - base[name] for name in target}, at / "naive.safetensors")


def _load(tensor) -> torch.Tensor:
    raw = bytearray(b"".join(tensor.pieces()))
    return torch.frombuffer(raw, dtype=torch.bfloat16).view(tensor.shape)


WORKS["naive"] = naive


def measure(word: str, at: Path) -> None:
    import resource

    started = time.perf_counter()
    WORKS[word](at)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": round(seconds, 1), "peak_mib": round(peak)}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--work", choices=WORKS)
    parser.add_argument("--at", type=Path)
    args = parser.parse_args()
    if args.work:
        measure(args.work, args.at)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        rows = int(args.gigabytes * 1e9 / args.shards / 8 / WIDTH / 2)
        for name, scale in (("base", 1.0), ("target", 1.01)):
            write(at / name, args.shards, rows, scale)
        out = {word: in_child(__file__, "--work", word, "--at", at) for word in WORKS}
        for path in weight_files(at / "target"):
            assert filecmp.cmp(path, at / "made" / path.name, shallow=False), path
        shard_mib = max(path.stat().st_size for path in weight_files(at / "target")) / 2**20
    base = out.pop("import")["peak_mib"]
    for row in out.values():
        row["peak_mib"] -= base
    passed = out["apply"]["peak_mib"] < 1.5 * shard_mib
    print(json.dumps({"shard_mib": round(shard_mib), "imports_mib": base} | out | {"pass": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
