"""From opening a file of 1,000,000 rows to the first batch, against `json.load` of the list (P10).

    python benchmarks/first_batch.py [--rows 1000000] [--repeats 5] [--folder DIR]

Each side is a fresh process that reads the same 64 rows of the shuffled order; that both read the same is
asserted first. The index is warm: a run before has made it. With a manifest of all rows beside it, sizes of
all rows, the order by length and the first batch of real samples, decoded, are timed too ("manifest").
Imports do not count. Prints one JSON.
"""

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path

from common import in_child, ratio_row
from many_rows import write_rows

BATCH, SEED = 64, 3
FASTER, WHOLE, INDEX, FIRST = 20.0, 1.0, 1.0, 5.0
"""Targets: times as fast as the list; seconds to the first rows, the manifest and its first batch."""


def digest(rows: list[dict]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def of_ours(args: argparse.Namespace) -> dict:
    from quicksviewer.data.mixture import Mixture, parse_mixture
    from quicksviewer.data.stream import SampleStream, shuffled

    started = time.perf_counter()
    mixture = Mixture(parse_mixture(args.lines))
    opened = time.perf_counter() - started
    stream = SampleStream(shuffled(len(mixture), "benchmark", SEED), len(mixture))
    rows = [mixture[int(index)][0] for index in stream.take(0, BATCH)]
    return {"open_s": opened, "seconds": time.perf_counter() - started, "rows": digest(rows)}


def of_list(args: argparse.Namespace) -> dict:
    from quicksviewer.data.stream import SampleStream, shuffled

    started = time.perf_counter()
    with open(args.whole, encoding="utf-8") as file:
        rows = json.load(file)
    stream = SampleStream(shuffled(len(rows), "benchmark", SEED), len(rows))
    found = [rows[int(index)] for index in stream.take(0, BATCH)]
    return {"seconds": time.perf_counter() - started, "rows": digest(found)}


def of_manifest(args: argparse.Namespace) -> dict:
    """Samples as a run makes them: sizes of all rows, steps of like length, the rows of the first decoded."""
    from quicksviewer.data.dataset import LazySupervisedDataset
    from quicksviewer.data.lengths import size_table
    from quicksviewer.data.manifest import Manifest
    from quicksviewer.data.mixture import Mixture, parse_mixture
    from quicksviewer.data.packing import Caps
    from quicksviewer.data.sampler import LengthGroupedSampler
    from quicksviewer.model.processor import QuicksviewerProcessor

    processor = QuicksviewerProcessor.from_pretrained(args.model)
    started = time.perf_counter()
    mixture, manifest = Mixture(parse_mixture(args.lines)), Manifest(args.manifest)
    opened, lines = time.perf_counter() - started, len(manifest)
    table = size_table(mixture, processor, Caps(tokens=4096), manifest=args.manifest)
    sizes = time.perf_counter() - started
    order = LengthGroupedSampler(table.tokens, table.modality, BATCH, mixture.fingerprint, SEED).order(0)
    data = LazySupervisedDataset(mixture, processor, 4096, table=table)
    batch = [data.load(int(index)) for index in order[:BATCH]]
    done = time.perf_counter() - started
    assert [len(row["input_ids"]) for row in batch] == table.tokens[order[:BATCH]].tolist()
    return {"lines": lines, "open_s": opened, "sizes_s": sizes, "seconds": done}


SIDES = {"ours": of_ours, "list": of_list, "manifest": of_manifest}


def write_manifest(folder: Path, lines: Path) -> Path:
    """The manifest of all rows, whose one video is probed once, as `data index` writes it."""
    from quicksviewer.survey import index

    path = folder / f"{lines.stem}.parquet"
    if not path.exists():
        words = [lines, "--output", path, "--model", folder / "model", "--workers", "0"]
        if index.main([str(word) for word in words]):
            raise SystemExit("the manifest could not be written")
    return path


def prepare(folder: Path, count: int) -> tuple[Path, Path, Path]:
    """Rows, the same rows as a list, and their manifest, made once; the model that counts tokens."""
    from toy_world import make_data, make_model

    if not (folder / "model").is_dir():
        make_data(folder / "data")
        make_model(folder / "parts", {}, {}).processor.save_pretrained(folder / "model")
    video = next((folder / "data/videos/train").glob("*.mp4"))
    lines, whole = write_rows(folder / "first_batch", count, [str(video)])
    return lines, whole, write_manifest(folder, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where rows are kept between runs")
    for name in ("--side", "--lines", "--whole", "--manifest", "--model"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        print(json.dumps(measure(folder, *prepare(folder, args.rows), args)))
    return 0


def measure(folder: Path, lines: Path, whole: Path, manifest: Path, args: argparse.Namespace) -> dict:
    flags = ("--lines", lines, "--whole", whole, "--manifest", manifest, "--model", folder / "model")

    def side(name: str) -> dict:
        return in_child(__file__, "--side", name, *flags)

    first = {name: side(name) for name in ("ours", "list")}  # does not count: the index is warm from now on
    assert first["ours"]["rows"] == first["list"]["rows"], "both read the same rows"
    rounds = [{name: side(name) for name in SIDES} for _ in range(args.repeats)]
    times = {name: [one[name]["seconds"] for one in rounds] for name in SIDES}
    told = ratio_row(times["list"], times["ours"], FASTER)
    best = min((one["manifest"] for one in rounds), key=lambda row: row["seconds"])
    index = min(one["manifest"]["open_s"] for one in rounds)
    told |= {"rows": args.rows, "worst_s": round(max(times["ours"]), 4), "manifest": best}
    fits = index < INDEX and best["seconds"] < FIRST and best["lines"] == args.rows
    return told | {"pass": told["pass"] and told["ours_s"] <= WHOLE and fits}


if __name__ == "__main__":
    raise SystemExit(main())
