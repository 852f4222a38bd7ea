"""How evenly 64 ranks of 8 micro-batches are loaded, counting frames, tokens and squared tokens (P5).

    python benchmarks/balance.py

Packs are planned by tokens alone, and under three caps. Peers: packs dealt at random, steps sorted by cost,
transformers' BatchRebalanceSampler (on packs, its own cost of lengths). Every pack is counted exactly once
first. Prints one JSON.
"""

import json
import time

import numpy as np
from mixtures import CAP, draw
from packing import COST, caps_of

from quicksviewer.data.packing import Caps, plan_packs
from quicksviewer.data.sampler import deal, epoch_rng

RANKS, MICRO = 64, 8


def loads(costs: np.ndarray, order: np.ndarray) -> dict:
    """Mean over max of the ranks' work, over steps; and the variance of costs within steps."""
    steps = costs[order][: len(order) // (RANKS * MICRO) * RANKS * MICRO].reshape(-1, MICRO, RANKS)
    ranks = steps.sum(axis=1)
    each = ranks.mean(axis=1) / ranks.max(axis=1)
    return {
        "mean_over_max": round(float(each.mean()), 4),
        "worst_step": round(float(each.min()), 4),
        "variance_within_step": float(steps.reshape(len(steps), -1).var(axis=1).mean()),
    }


def rebalanced(lengths: np.ndarray) -> np.ndarray:
    """The order of transformers' sampler: its groups of a step, in turn over ranks."""
    from transformers.trainer_pt_utils import BatchRebalanceSampler

    of_rank = [
        list(BatchRebalanceSampler(lengths.tolist(), RANKS * MICRO, RANKS, MICRO, rank=rank))
        for rank in range(RANKS)
    ]
    steps = range(0, len(of_rank[0]), MICRO)
    return np.array([of_rank[r][s + m][0] for s in steps for m in range(MICRO) for r in range(RANKS)])


def row(sizes: np.ndarray, caps: Caps) -> dict:
    """All ways of dealing the packs of one plan."""
    packs = plan_packs(sizes, caps)
    totals = packs.totals(sizes)
    costs, shuffled = COST(totals), epoch_rng("", 0, 0).permutation(len(packs))
    started = time.perf_counter()
    dealt = deal(shuffled, costs, RANKS, MICRO)
    seconds = time.perf_counter() - started
    assert sorted(dealt.tolist()) == list(range(len(packs))), "each pack exactly once"
    sides = {
        "random": loads(costs, shuffled),
        "hf_batch_rebalance": loads(costs, rebalanced(totals[:, 0])),
        "sorted": loads(costs, np.argsort(-costs)),
        "ours": loads(costs, dealt),
    }
    kept = sides["ours"]["variance_within_step"] / sides["random"]["variance_within_step"]
    told = {"packs": len(packs), "deal_s": round(seconds, 3), "variance_kept": round(kept, 4)}
    return sides | told | {"pass": sides["ours"]["mean_over_max"] >= 0.98 and kept >= 0.9}


def main() -> int:
    out = {}
    for stage in CAP:
        sizes, _ = draw(stage, 200_000)
        plans = {"tokens": Caps(tokens=CAP[stage]), "three_caps": caps_of(sizes, CAP[stage])}
        out[stage] = {name: row(sizes, caps) for name, caps in plans.items()}
    print(json.dumps(out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
