"""How evenly the frames of a batch are dealt to a team's towers, against dealing whole videos.

    python benchmarks/frame_split.py

1 to 8 videos of 16 to 420 frames on 2 to 8 ranks, 1000 batches. Peers: consecutive videos to each rank, and
the longest video first to the rank with the fewest frames, about the best that whole videos allow.
`resampled`: the balance after frames have moved to where their cube begins, for cubes of 6 frames; `moved`:
the share of frames that move. Figures are mean over maximum; `optimum` says how often no split is better.
Prints one JSON.
"""

import json
import random
import statistics
import sys

from quicksviewer.model.team import deal_cubes, even_counts

BATCHES, FRAMES_PER_CUBE, TARGET = 1000, 6, 0.99
LONG_ENOUGH = 100
"""Frames for each rank from which on one frame more or less is 1 percent."""


def contiguous(videos: list[int], ranks: int) -> list[int]:
    counts = even_counts(len(videos), ranks)
    starts = [sum(counts[:rank]) for rank in range(ranks)]
    return [sum(videos[start : start + count]) for start, count in zip(starts, counts, strict=True)]


def longest_first(videos: list[int], ranks: int) -> list[int]:
    loads = [0] * ranks
    for video in sorted(videos, reverse=True):
        loads[loads.index(min(loads))] += video
    return loads


def resampled(videos: list[int], ranks: int) -> tuple[list[int], int]:
    """Frames of each rank's cubes, and how many frames have moved to it."""
    first, start = [], 0
    for frames in videos:
        first += range(start, start + frames, FRAMES_PER_CUBE)
        start += frames
    parts = deal_cubes(first, start, even_counts(start, ranks))
    counts = [part.frames.stop - part.frames.start for part in parts]
    if sum(counts) != start or sum(map(sum, (part.send for part in parts))) != start:
        raise SystemExit("frames were lost or doubled")
    return counts, sum(sum(part.send) - part.send[rank] for rank, part in enumerate(parts))


def balance(counts: list[int]) -> float:
    return statistics.mean(counts) / max(counts)


def main() -> int:
    rng = random.Random(0)
    found = {name: [] for name in ("ours", "contiguous", "longest_first", "resampled", "moved")}
    spread, optimum, long_batches = 0, 0, []
    for _ in range(BATCHES):
        videos, ranks = [rng.randint(16, 420) for _ in range(rng.randint(1, 8))], rng.choice([2, 4, 8])
        counts = even_counts(sum(videos), ranks)
        spread = max(spread, max(counts) - min(counts))
        optimum += max(counts) == -(-sum(videos) // ranks)
        own, moved = resampled(videos, ranks)
        sides = {"ours": counts, "contiguous": contiguous(videos, ranks), "resampled": own}
        sides["longest_first"] = longest_first(videos, ranks)
        for name, loads in sides.items():
            found[name].append(balance(loads))
        found["moved"].append(moved / sum(videos))
        if sum(videos) >= LONG_ENOUGH * ranks:
            long_batches.append(balance(counts))
    summary = {
        name: {"median": round(statistics.median(values), 4), "least": round(min(values), 4)}
        for name, values in found.items()
    }
    summary["moved"]["most"] = round(max(found["moved"]), 4)
    ok = spread <= 1 and optimum == BATCHES and min(long_batches) >= TARGET
    result = {
        "balance": summary,
        "max_minus_min_frames": spread,
        "optimum": optimum / BATCHES,
        f"least_from_{LONG_ENOUGH}_frames_a_rank": round(min(long_batches), 4),
        "batches_of_that_size": len(long_batches),
        "target": TARGET,
        "pass": ok,
    }
    print(json.dumps(result))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
