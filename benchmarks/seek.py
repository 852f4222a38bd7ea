"""Going on at 90% of an epoch: the place in the stream, against skipping batches one by one (P11).

    python benchmarks/seek.py [--rows 1000000] [--repeats 15]

Ours is the sampler of the trainer, started at a position; the peer `accelerate.skip_first_batches`, which
the Trainer of transformers uses to resume. Both give the first batch from there on. That batch is asserted to
be the one that a walk from the start comes to. Rows that are loaded on the way are counted. Prints one JSON.
"""

import argparse
import json
import statistics

from accelerate import skip_first_batches
from common import interleaved, median_interval, ratio_row
from torch.utils.data import DataLoader, Dataset

from quicksviewer.data.stream import SampleStream, Share, StepSampler, shuffled

BATCH, SEED, FLAT = 16, 7, 1.5


class Counted(Dataset):
    """Rows that are their own index; how many were loaded."""

    def __init__(self, length: int):
        self.length, self.loaded = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.loaded += 1
        return int(index)


def loader(data: Counted, start: int) -> DataLoader:
    """The batches of a run of one process from a position on."""
    stream = SampleStream(shuffled(len(data), "benchmark", SEED), len(data))
    sampler = StepSampler(stream, Share(per_device=BATCH), start)
    return DataLoader(data, batch_sampler=sampler, collate_fn=list)


def first_of_ours(data: Counted, start: int) -> list[int]:
    return next(iter(loader(data, start)))


def first_of_peer(data: Counted, start: int) -> list[int]:
    return next(iter(skip_first_batches(loader(data, 0), start // BATCH)))


def walked_to(data: Counted, start: int) -> list[int]:
    for number, batch in enumerate(loader(data, 0)):
        if number == start // BATCH:
            return batch
    raise AssertionError("the epoch is shorter")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    data = Counted(args.rows)
    late = int(args.rows * 0.9) // BATCH * BATCH
    wanted = walked_to(data, late)
    counts = {}
    for name, side in (("ours", first_of_ours), ("peer", first_of_peer)):
        data.loaded = 0
        assert side(data, late) == wanted, f"{name} comes to another batch"
        counts[name] = data.loaded - BATCH
    sides = {
        "at_0": lambda: first_of_ours(data, 0),
        "at_90": lambda: first_of_ours(data, late),
        "peer_at_90": lambda: first_of_peer(data, late),
    }
    seconds = interleaved(sides, args.repeats)
    growth = [late / start for late, start in zip(seconds["at_90"], seconds["at_0"], strict=True)]
    low, high = median_interval(growth)
    print(
        json.dumps(
            {
                "rows": args.rows,
                "loaded_on_the_way": counts,
                "seconds_at_0": round(statistics.median(seconds["at_0"]), 5),
                "at_90_over_at_0": {
                    "median": round(statistics.median(growth), 3),
                    "low": round(low, 3),
                    "high": round(high, 3),
                },
                "target": FLAT,
                "against_skip_first_batches": ratio_row(seconds["peer_at_90"], seconds["at_90"], 1.0),
                "pass": high <= FLAT and counts["ours"] == 0,
            }
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
