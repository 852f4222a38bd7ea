"""Memory of an index of 1,000,000 rows with DataLoader workers, against a list of dicts (P9).

    python benchmarks/row_index.py [--rows 1000000] [--draws 300000] [--folder DIR]

PSS (proportional set size: shared pages are counted once) is summed over the process and its workers after
the rows were drawn in random order. Each figure is a fresh process; "empty" is the same without any rows, so
that what rows cost can be told from what Python and torch cost. Prints one JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import psutil
from common import in_child
from many_rows import write_rows

WORKERS = (1, 4, 8)
DRAWN = 64
"""Rows of a batch."""


class Empty:
    """No rows, the same answers."""

    def __getitem__(self, index: int) -> int:
        return 0


class Lengths:
    """Letters of the answer of a row: what a worker sends back is small, what it touches is the row."""

    def __init__(self, rows, take):
        self.rows, self.take = rows, take

    def __getitem__(self, index: int) -> int:
        return self.take(self.rows, index)


def taken(row: dict) -> int:
    return sum(len(turn["value"]) for turn in row["conversations"])


def side_of(name: str, lines: str, whole: str):
    """The data set of a side, opened here."""
    from quicksviewer.data.sources import JsonlIndex

    if name == "ours":
        return Lengths(JsonlIndex(lines), lambda rows, index: taken(rows[index][0]))
    if name == "list":
        with open(whole, encoding="utf-8") as file:
            return Lengths(json.load(file), lambda rows, index: taken(rows[index]))
    return Empty()


def pss_mib() -> float:
    """Of this process and all below it."""
    me = psutil.Process()
    return sum(one.memory_full_info().pss for one in [me, *me.children(recursive=True)]) / 2**20


def one_side(args: argparse.Namespace) -> dict:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    data = side_of(args.side, args.lines, args.whole)
    order = np.random.default_rng(0).integers(0, args.rows, args.draws)
    batches = order[: len(order) // DRAWN * DRAWN].reshape(-1, DRAWN).tolist()
    loader = DataLoader(data, batch_sampler=batches, num_workers=args.workers, persistent_workers=True)
    letters = sum(int(batch.sum()) for batch in loader)
    return {"pss_mib": round(pss_mib(), 1), "letters": letters}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--draws", type=int, default=300_000)
    parser.add_argument("--folder", help="where rows are kept between runs")
    for name in ("--side", "--lines", "--whole"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(one_side(args)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        lines, whole = write_rows(Path(args.folder or folder) / "row_index", args.rows, ["clips/a.mp4"])
        print(json.dumps(measure(args, str(lines), str(whole))))
    return 0


def measure(args: argparse.Namespace, lines: str, whole: str) -> dict:
    def side(name: str, workers: int) -> dict:
        flags = ("--side", name, "--lines", lines, "--whole", whole, "--rows", args.rows)
        return in_child(__file__, *flags, "--draws", args.draws, "--workers", workers)

    ours = {workers: side("ours", workers) for workers in WORKERS}
    empty = {workers: side("empty", workers) for workers in WORKERS}
    peer = side("list", 4)
    assert peer["letters"] == ours[4]["letters"], "both sides read the same rows"
    net = {workers: round(ours[workers]["pss_mib"] - empty[workers]["pss_mib"], 1) for workers in WORKERS}
    share = ours[4]["pss_mib"] / peer["pss_mib"]
    return {
        "rows": args.rows,
        "total_pss_mib": {workers: found["pss_mib"] for workers, found in ours.items()},
        "empty_pss_mib": {workers: found["pss_mib"] for workers, found in empty.items()},
        "list_of_dicts_pss_mib_4_workers": peer["pss_mib"],
        "share_of_list": round(share, 4),
        "rows_alone_mib": net,
        "rows_alone_share": round(net[4] / (peer["pss_mib"] - empty[4]["pss_mib"]), 4),
        "pass": share <= 0.1,
    }


if __name__ == "__main__":
    raise SystemExit(main())
