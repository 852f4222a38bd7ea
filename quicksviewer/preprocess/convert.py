"""Convert a public data set: `quicksviewer preprocess NAME --input FILES --output FOLDER`.

`quicksviewer preprocess --list` shows the names. The flags of the published scripts (--ann_path, --video_dir,
--output_dir, ...) mean the same here.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module

from quicksviewer.preprocess.converter import REASONS, Converter
from quicksviewer.preprocess.job import Means, Settings, convert
from quicksviewer.preprocess.runner import RUNNERS, WorkerDied
from quicksviewer.preprocess.tables import PUBLIC, find
from quicksviewer.preprocess.task import CHECKS, Job
from quicksviewer.utils.registry import lookup

TOOLS = {
    "2tsv": ("quicksviewer.preprocess.convert_2tsv", "videos, or rows with frames, into a TSV store"),
    "change_datasets": ("quicksviewer.preprocess.change_datasets", "drop bad rows, or rewrite paths"),
    "split_activitynet": ("quicksviewer.preprocess.split_activitynet", "cut videos into their scenes"),
}
"""Word -> module with a `main`, and what it does."""
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed or too much was skipped, 2 wrong usage, 130 stopped by Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "--list"):
        print(usage())
        return DONE if words else WRONG
    name, *rest = words
    if name in TOOLS:
        return import_module(TOOLS[name][0]).main(rest)
    try:
        lookup({one.name: one for one in PUBLIC} | TOOLS, name, "converter")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    return _main_of(find(name), rest)


def script(*converters: Converter) -> int:
    """`python -m quicksviewer.preprocess.convert_x`: of several converters the first word chooses.

    Without one it is the first of two; a list of parts has no first among equals.
    """
    words = sys.argv[1:]
    names = {one.name.removeprefix("videochat2it_"): one for one in converters}
    if words and words[0] in names:
        return _main_of(names[words[0]], words[1:])
    if words and words[0].startswith("-") and len(converters) <= 2:
        return _main_of(converters[0], words)
    print(f"usage: {{{','.join(names)}}} --input FILES --output FOLDER ...", file=sys.stderr)
    return DONE if words and words[0] in ("-h", "--help") else WRONG


def usage() -> str:
    """The names and what they read."""
    rows = [(one.name, one.reads) for one in PUBLIC] + [(word, text) for word, (_, text) in TOOLS.items()]
    width = max(len(name) for name, _ in rows)
    head = "usage: quicksviewer preprocess NAME --input FILES --output FOLDER [OPTION...]"
    return "\n".join([head, "", *(f"  {name:{width}}  {text}" for name, text in rows)])


def add_means(parser: argparse.ArgumentParser) -> None:
    """The options that say where the work is done."""
    parser.add_argument(
        "--runner", choices=sorted(RUNNERS), default="local", help="this machine, or Ray Data"
    )
    parser.add_argument("--num_workers", type=int, default=_cores(), help="processes")


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def guarded(work: Callable[[], int]) -> int:
    """The exit code of some work, whatever ends it."""
    try:
        return work()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except (OSError, WorkerDied, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the finished shards", file=sys.stderr)
        return INTERRUPTED


def _parser(converter: Converter) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"quicksviewer preprocess {converter.name}", description=f"Reads {converter.reads}."
    )
    add = parser.add_argument
    inputs = ("--input", "--ann_path", "--ann_dir", "--data_path")
    add(*inputs, nargs="+", required=True, help="files, folders, patterns; paths or URLs of fsspec")
    add(
        "--output",
        "--output_dir",
        required=True,
        help="folder or URL for the rows, and media from inside rows",
    )
    add("--media_root", "--video_dir", "--image_dir", help="folder or URL that media paths start at")
    add("--tsv_output", "--tsv_output_dir", help="also write the videos as a TSV store to this folder")
    add("--name", default=converter.name, help="of the output files and in uids (default: %(default)s)")
    add(
        "--extra",
        nargs="*",
        default=[],
        metavar="WORD=FILE",
        help=f"further files: {converter.extras or 'none'}",
    )
    add("--image_cache", help="folder of pictures by the SHA-256 of their address (OBELICS)")
    add("--check_media", choices=CHECKS, default="head", help="how well media files are looked at")
    add("--isolation", choices=("none", "process"), default="process", help="where videos are decoded")
    add("--rows_per_shard", type=int, default=1000, help="rows of a task")
    add(
        "--samples_range",
        type=_range,
        default=(0, None),
        metavar="A_B",
        help="only rows A to B-1; B may be -1",
    )
    add("--decoder", default="av", help="of the TSV store")
    add("--frame_side", type=int, default=448, help="shorter side of stored frames at most; 0: of the video")
    add("--max_skipped", type=float, default=0.5, help="share of rows without a sample that is no failure")
    add_means(parser)
    return parser


def _range(text: str) -> tuple[int, int | None]:
    start, _, stop = text.partition("_")
    return int(start), None if stop == "-1" else int(stop)


def _main_of(converter: Converter, argv: list[str]) -> int:
    args = _parser(converter).parse_args(argv)
    return guarded(lambda: _run(converter, args))


def _extras(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if wrong := ["".join(pair) for pair in pairs if not (pair[0] and pair[2])]:
        raise ValueError(f"--extra takes WORD=FILE, got {' '.join(wrong)}")
    return {word: absolute(path) for word, _, path in pairs}


def absolute(path: str | None) -> str | None:
    """The path from the root of the machine: workers may stand in another folder. URLs are kept."""
    return path if path is None or "://" in path else os.path.abspath(path)


def _run(converter: Converter, args: argparse.Namespace) -> int:
    job = Job(
        converter=converter.name,
        name=args.name,
        output=absolute(args.output),
        media_root=absolute(args.media_root),
        extras=_extras(args.extra),
        image_cache=absolute(args.image_cache),
        check_media=args.check_media,
        isolation=args.isolation,
    )
    settings = Settings(
        job=job,
        inputs=tuple(map(absolute, args.input)),
        rows_per_shard=args.rows_per_shard,
        samples_range=args.samples_range,
        tsv_output=absolute(args.tsv_output),
        decoder=args.decoder,
        frame_side=args.frame_side,
    )
    report = convert(settings, Means(runner=args.runner, num_workers=args.num_workers))
    return show(report, args.max_skipped, f"{job.output}/{job.name}.skipped.jsonl")


def show(report: dict, max_skipped: float, ledger: str) -> int:
    """Print what became of the rows, and give the exit code."""
    counts = report["counts"]
    lost = counts["rows"] - counts["used"]
    print(f"{counts['used']} of {counts['rows']} rows used")
    for name, count in counts["samples"].items():
        print(f"  {count:8} samples in {name}")
    for reason, count in counts["skipped"].items():
        print(f"  {count:8} skipped, {reason}: {REASONS[reason]}")
    print("for a mixture:", *(f"  - {entry}" for entry in map(_as_yaml, report["mixture"])), sep="\n")
    if lost > max_skipped * counts["rows"]:
        print(f"error: {lost} of {counts['rows']} rows gave nothing, see {ledger}", file=sys.stderr)
        return FAILED
    return DONE


def _as_yaml(entry: dict) -> str:
    return f"{{{', '.join(f'{key}: {value}' for key, value in entry.items() if value)}}}"


if __name__ == "__main__":
    sys.exit(main())
