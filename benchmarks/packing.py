"""How full packs are, how long planning takes, and what the fullest pack costs the step (P3, P3b, P3c).

    pip install trl datasets            # the strongest peer; without it that row is left out, and said so
    python benchmarks/packing.py [--samples 1000000]

Peers: TRL's `bfd`, transformers' LengthGroupedSampler, padding to the longest (LLaVA), and the published
form: sort in the collator, next fit. Every sample is counted exactly once first. Prints one JSON.
"""

import argparse
import json
import statistics

import numpy as np
import torch
from common import interleaved, ratio_row, seconds_of
from mixtures import CAP, draw

from quicksviewer.data.packing import Caps, Packs, fewest_packs, plan_packs, stream_packs
from quicksviewer.data.sampler import CostModel, epoch_rng

RANKS = 64
COST = CostModel.of_model(7.6e9, 28, 3584, 3 * 0.67e12)
"""A 7B model and a trained SigLIP-so400m: FLOPs of a frame forward and backward."""


def checked(packs: Packs, sizes, caps: Caps) -> Packs:
    """The packs, if they hold every sample once under every cap."""
    assert sorted(packs.samples.tolist()) == list(range(len(sizes))), "0 dropped, 0 dummy"
    assert (packs.totals(sizes) <= caps.as_row()).all(), "0 truncated"
    return packs


def tokens_only(stage: str, samples: int) -> dict:
    """P3 and P3b: packs over the bound, fill, seconds."""
    sizes, _ = draw(stage, samples)
    caps = Caps(tokens=CAP[stage])
    seconds = [seconds_of(lambda: plan_packs(sizes, caps)) for _ in range(3)]
    packs, bound = checked(plan_packs(sizes, caps), sizes, caps), fewest_packs(sizes, caps)
    some = sizes[:50_000]
    streamed = checked(Packs.from_lists(list(stream_packs(some, caps))), some, caps)
    in_collator = {
        rows: fill(next_fit_of_batches(some[:, 0], caps.tokens, rows), some, caps) for rows in (16, 64, 256)
    }
    pool = fill(streamed, some, caps)
    return {
        "packs": len(packs),
        "bound": bound,
        "fill": fill(packs, sizes, caps),
        "plan_s": round(statistics.median(seconds), 2),
        "pool_1024_fill": pool,
        "fill_in_collator_of_rows": in_collator,
        "pass": {
            "P3": len(packs) <= bound + 1 and statistics.median(seconds) <= 10,
            "P3b": pool >= 0.99,
            "P3b_1.25_of_collator_of_rows": {rows: pool >= 1.25 * them for rows, them in in_collator.items()},
        },
    }


def fill(packs: Packs, sizes, caps: Caps, k: int = 0) -> float:
    return round(float((packs.totals(sizes)[:, k] / caps.as_row()[k]).mean()), 5)


def next_fit_of_batches(lengths: np.ndarray, cap: int, batch: int) -> Packs:
    """The published collator: the rows of a batch, longest first, into the pack at hand or a new one."""
    packs = []
    for start in range(0, len(lengths), batch):
        room = 0
        for index in start + np.argsort(-lengths[start : start + batch], kind="stable"):
            if lengths[index] > room:
                packs.append([])
                room = cap
            packs[-1].append(int(index))
            room -= lengths[index]
    return Packs.from_lists(packs)


def padded(stage: str, rows: int = 8) -> dict:
    """Useful share of batches that are padded to their longest row."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = draw(stage, 100_000)[0][:, 0]
    grouped = get_length_grouped_indices(lengths.tolist(), rows, generator=torch.Generator().manual_seed(0))

    def useful(order) -> float:
        batches = lengths[np.asarray(order)].reshape(-1, rows)
        return round(float(batches.sum() / (batches.max(axis=1) * rows).sum()), 4)

    return {"random": useful(epoch_rng("", 0, 0).permutation(len(lengths))), "hf_grouped": useful(grouped)}


def against_trl(stage: str, samples: int = 100_000, repeats: int = 7) -> dict | str:
    """Seconds of TRL's best-fit decreasing and of ours on the same rows. TRL packs the tokens too, one byte
    each here; ours plans and leaves them where they are."""
    try:
        import pyarrow
        from trl.data_utils import _pack_bfd  # what pack_dataset(strategy="bfd") runs, without its copies
    except ImportError as error:
        return f"not run: {error}"
    sizes, _ = draw(stage, samples)
    caps, ends = Caps(tokens=CAP[stage]), np.concatenate([[0], np.cumsum(sizes[:, 0])])
    tokens = pyarrow.array(np.zeros(ends[-1], np.int8))
    rows = pyarrow.table({"input_ids": pyarrow.LargeListArray.from_arrays(ends, tokens)})

    def theirs():
        return _pack_bfd(rows, CAP[stage])

    sides = {"trl": theirs, "ours": lambda: plan_packs(sizes, caps)}
    counts = {"trl": len(theirs()), "ours": len(plan_packs(sizes, caps)), "bound": fewest_packs(sizes, caps)}
    times = interleaved(sides, repeats)
    return {"packs": counts, "time": ratio_row(times["trl"], times["ours"], 1.0)}


def caps_of(sizes, tokens: int) -> Caps:
    """Frames at 1.05 and squares at 2 times the mean of a pack filled with tokens, but never less than the
    largest sample has."""
    mean = sizes.sum(axis=0) / fewest_packs(sizes, Caps(tokens=tokens))
    largest = sizes.max(axis=0)
    frames, squares = max(int(1.05 * mean[1]), largest[1]), max(int(2 * mean[2]), largest[2])
    return Caps(tokens=tokens, frames=int(frames), squares=int(squares))


def three_caps(stage: str, samples: int, tokens: int) -> dict:
    """P3c: fill of packs under three caps, and the worst rank against packs by tokens alone."""
    sizes, _ = draw(stage, samples)
    free, caps = Caps(tokens=tokens), caps_of(sizes, tokens)
    seconds = seconds_of(lambda: plan_packs(sizes, caps))
    sides = {"three_caps": checked(plan_packs(sizes, caps), sizes, caps), "tokens": plan_packs(sizes, free)}
    worst = {name: worst_rank(packs, sizes) for name, packs in sides.items()}
    totals = sides["three_caps"].totals(sizes).mean(axis=0) / caps.as_row()
    ratio = worst["three_caps"] / worst["tokens"]
    return {
        "caps": vars(caps),
        "fill": dict(zip(("tokens", "frames", "squares"), totals.round(4).tolist(), strict=True)),
        "plan_s": round(seconds, 2),
        "worst_rank_of_tokens_only": round(ratio, 3),
        "pass": {"fill": bool(totals[0] >= 0.98 and totals[1] >= 0.90), "worst_rank": ratio <= 0.75},
    }


def worst_rank(packs: Packs, sizes) -> float:
    """Cost of the worst of 64 ranks with a pack each, for the work of an epoch: packs in random order."""
    costs = COST(packs.totals(sizes))[epoch_rng("", 0, 0).permutation(len(packs))]
    steps = costs[: len(costs) // RANKS * RANKS].reshape(-1, RANKS)
    return float(steps.max(axis=1).mean() * len(costs) / COST(sizes).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    samples = parser.parse_args().samples
    out = {"samples": samples}
    for stage in CAP:
        out[stage] = {"tokens_only": tokens_only(stage, samples), "padded": padded(stage)}
        out[stage]["three_caps"] = [three_caps(stage, samples // 4, CAP[stage] * n) for n in (1, 4)]
        out[stage]["trl_bfd"] = against_trl(stage, 20_000)
        print(stage, json.dumps(out[stage]), flush=True)
    print(json.dumps(out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
