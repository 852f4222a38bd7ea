"""Predicted against real lengths of every row of the embedded world, and what measuring costs (P4).

    python -m quicksviewer data make --recipe tiny
    python benchmarks/lengths.py --model CHECKPOINT --media_root FOLDER DATA.jsonl ...

The peer is the published estimate: words times 1.5 and half a token a frame. Rows are decoded to learn their
real length. Prints one JSON.
"""

import argparse
import json
import time
from dataclasses import replace

from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.data.lengths import size_table
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.packing import Caps
from quicksviewer.model.processor import QuicksviewerProcessor


def estimate(record: dict, frames: int) -> float:
    """The published length of a row."""
    turns = record.get("conversations", [{"value": str(record.get("caption", ""))}])
    return 1.5 * sum(len(turn["value"].split()) for turn in turns) + 0.5 * frames


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="JSONL files")
    parser.add_argument("--media_root", required=True)
    parser.add_argument("--model", required=True, help="folder with a processor")
    parser.add_argument("--rows", type=int, default=200, help="most rows of a file")
    args = parser.parse_args()
    specs = [replace(parse_mixture(path)[0], media_root=args.media_root) for path in args.data]
    whole = [Mixture([spec]) for spec in specs]
    cut = [replace(s, stop=min(args.rows, len(m))) for s, m in zip(specs, whole, strict=True)]
    mixture, processor = Mixture(cut), QuicksviewerProcessor.from_pretrained(args.model)
    started = time.perf_counter()
    table = size_table(mixture, processor, Caps(tokens=2**20))
    measured = time.perf_counter() - started
    data = LazySupervisedDataset(mixture, processor, 2**20, table=table)
    started = time.perf_counter()
    real = [len(data.load(index)["input_ids"]) for index in range(len(mixture))]
    decoded = time.perf_counter() - started
    guessed = [estimate(mixture[i][0], int(table.frames[i])) for i in range(len(mixture))]
    exact = sum(int(p) == r for p, r in zip(table.tokens, real, strict=True))
    off = sorted(abs(g - r) / r for g, r in zip(guessed, real, strict=True))
    told = {"rows": len(real), "exact": exact, "estimate_median_error": round(off[len(off) // 2], 3)}
    told |= {"estimate_exact": sum(round(g) == r for g, r in zip(guessed, real, strict=True))}
    told |= {"measure_s": round(measured, 2), "decode_s": round(decoded, 2), "pass": exact == len(real)}
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
