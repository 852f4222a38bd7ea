"""`quicksviewer delta make | apply | verify`, and what these words share.

python -m quicksviewer delta make   --base-model-path BASE --target-model-path TARGET --delta-path DELTA
python -m quicksviewer delta apply  --base-model-path BASE --target-model-path TARGET --delta-path DELTA
python -m quicksviewer delta verify --base-model-path BASE --delta-path DELTA
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from quicksviewer.utils.registry import did_you_mean, load_target

WORDS = {
    "make": "quicksviewer.model.make_delta:main",
    "apply": "quicksviewer.model.apply_delta:main",
    "verify": "quicksviewer.model.apply_delta:verify",
}


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in WORDS:
        return load_target(WORDS[words[0]])(words[1:])
    asked_for_help = bool(words) and words[0] in ("-h", "--help")
    print(__doc__.strip(), file=sys.stdout if asked_for_help else sys.stderr)
    if asked_for_help:
        return 0
    hint = did_you_mean(words[0], WORDS) if words else ""
    print(f"error: say one of {', '.join(WORDS)}.{hint}", file=sys.stderr)
    return 2


def parser_of(word: str, about: str, **paths: str) -> argparse.ArgumentParser:
    """A parser with the paths that a word needs, base, target, delta -> what is done with it."""
    parser = argparse.ArgumentParser(prog=f"quicksviewer delta {word}", description=about.splitlines()[0])
    for name, use in paths.items():
        flag = "--delta-path" if name == "delta" else f"--{name}-model-path"
        parser.add_argument(flag, type=Path, required=True, help=f"folder, {use}")
    return parser


@contextmanager
def progress_of(title: str):
    """A progress bar; gives the function that is told of bytes that are done."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda size: progress.advance(task, size)


def run(title: str, work: Callable) -> int:
    """Do the work with a progress bar and say what came of it."""
    try:
        with progress_of(title) as report:
            record = work(report)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    kinds = Counter(kind for file in record.files.values() for kind in file.kinds.values())
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    print(f"{title}: {sum(kinds.values())} tensors ({told}), form {record.form}, base {record.base_name}")
    return 0
