"""How evenly causal attention is dealt to the ranks of a ring: zigzag order against one contiguous span each.

    python benchmarks/ring_split.py

Counts the scores of the very blocks that the attention computes (`SequencePlan.blocks`), not a formula. Two
figures: `whole`, mean over maximum of all work, and `steps`, the same where ranks wait for each other in each
step of the ring. Packed rows are shown too: their balance is what their documents make of it; no target holds
for them. Prints one JSON.
"""

import json
import sys

import numpy as np

from quicksviewer.train.sequence_parallel.plan import ORDERS, SequencePlan
from quicksviewer.train.sequence_parallel.topology import Topology

RINGS, LENGTH, TARGET = (2, 4, 8, 16), 32768, 0.99
DOCUMENTS = {"one document": [LENGTH], "16 equal documents": [LENGTH // 16] * 16}


def packed(seed: int) -> list[int]:
    """Lengths of documents that fill a row: most are short, a few take a large part of it."""
    rng, lengths = np.random.default_rng(seed), []
    while sum(lengths) < LENGTH:
        lengths.append(int(min(rng.lognormal(7.5, 1.2) + 16, LENGTH - sum(lengths))))
    return lengths


def work_by_step(plan: SequencePlan) -> np.ndarray:
    """Scores that a rank computes in a step of the ring: (steps, ranks)."""
    ring = plan.topology.ring
    return np.array(
        [
            [sum(block.pairs for block in plan.blocks(rank, (rank - step) % ring)) for rank in range(ring)]
            for step in range(ring)
        ]
    )


def figures(ring: int, order: str, lengths: list[int]) -> dict:
    row = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None]
    work = work_by_step(SequencePlan(Topology(ring, ring, ring), order, row))
    wanted = sum(n * (n + 1) // 2 for n in lengths)
    if work.sum() != wanted:
        raise SystemExit(f"{work.sum()} scores are computed, {wanted} are needed")
    whole = work.sum(axis=0)
    return {
        "whole": round(float(whole.mean() / whole.max()), 4),
        "steps": round(float(work.mean(axis=1).sum() / work.max(axis=1).sum()), 4),
    }


def main() -> int:
    rows = DOCUMENTS | {"packed, seed 0": packed(0), "packed, seed 1": packed(1)}
    found = {
        name: {f"ring {ring}": {order: figures(ring, order, lengths) for order in ORDERS} for ring in RINGS}
        for name, lengths in rows.items()
    }
    single = found["one document"].values()
    least = min(min(by_order["zigzag_ring_varlen"].values()) for by_order in single)
    result = {"balance": found, "zigzag_least": least, "target": TARGET, "pass": least >= TARGET}
    print(json.dumps(result))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
