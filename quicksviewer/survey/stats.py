"""How long the rows of a data set are, how many there are, of what kind and from where.

    python -m quicksviewer data stats --recipe tiny --stage stage2 --plots
    python -m quicksviewer data stats --data rows.jsonl --model output/tiny/stage3 --manifest manifest.parquet

Writes stats.json into --out, with --plots also tokens.png, frames.png and seconds.png. A manifest of `data
index` spares looking at the files.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from quicksviewer.data.manifest import Manifest
from quicksviewer.survey.sizes import Sizes, as_json, groups, measured, summary
from quicksviewer.survey.subject import add_arguments, read_subject
from quicksviewer.utils.config import save_json
from quicksviewer.utils.data_util import MediaError
from quicksviewer.utils.registry import require

PLOTS = {"tokens": "tokens of a row", "frames": "frames of a row", "seconds": "seconds of video in a row"}


def main(argv: list[str] | None = None) -> int:
    """0 done, 2 wrong usage, files that are missing or rows of which none can be read."""
    parser = argparse.ArgumentParser(
        prog="quicksviewer data stats", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--manifest", help="parquet file of `data index`, in the place of heads of files")
    parser.add_argument("--plots", action="store_true", help="draw histograms (needs the extra `data`)")
    args, rest = parser.parse_known_args(argv)
    try:
        subject = read_subject(args, rest)
        if args.plots:
            require("matplotlib", "data")
        manifest = Manifest(args.manifest) if args.manifest else None
        sizes = measured(subject, args.workers, manifest)
    except (ValueError, OSError, MediaError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = Path(args.out)
    save_json(folder / "stats.json", as_json(sizes, subject.max_length))
    show(subject.name, sizes, subject.max_length)
    if args.plots:
        draw(folder, sizes)
    print(f"figures: {folder / 'stats.json'}")
    return 0


def show(name: str, sizes: Sizes, max_length: int) -> None:
    """The table of sources and kinds on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for column in ("source", "kind"):
        table.add_column(column, overflow="fold")
    for column in ("rows", "tokens p50", "p95", "max", "tokens", "frames", "hours"):
        table.add_column(column, justify="right")
    columns = {name: sizes.column(name) for name in PLOTS}
    for source, modality, at in [*groups(sizes), ("all", "", np.arange(len(sizes)))]:
        figures = {name: summary(values[at]) for name, values in columns.items()}
        tokens = figures["tokens"]
        told = [len(at), *(tokens[mark] for mark in ("p50", "p95", "max", "total"))]
        told = [f"{value:,.0f}" for value in (*told, figures["frames"]["total"])]
        table.add_row(_escaped(source), modality, *told, f"{figures['seconds']['total'] / 3600:,.2f}")
    console = Console()
    console.print(table)
    long = int((columns["tokens"] > max_length).sum())
    console.print(f"{long} rows exceed {max_length} tokens; {len(sizes.unusable)} rows cannot be used")


def _escaped(words: str) -> str:
    from rich.markup import escape

    return escape("".join(letter if letter.isprintable() else "?" for letter in words))


def draw(folder: Path, sizes: Sizes) -> None:
    """A histogram of each size, kinds of rows stacked: NAME.png."""
    figure_class = require("matplotlib.figure", "data").Figure
    modality = sizes.column("modality")
    for name, label in PLOTS.items():
        values = sizes.column(name)
        figure = figure_class(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xlabel=label, ylabel="rows")
        kinds = [kind for kind in ("text", "image", "video") if (values[modality == kind] > 0).any()]
        if kinds:
            axes.hist([values[modality == kind] for kind in kinds], bins=40, stacked=True, label=kinds)
            axes.legend()
        figure.savefig(folder / f"{name}.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
