"""Go over JSONL files of this project: drop rows that cannot be used, or rewrite their paths.

    python -m quicksviewer.preprocess.change_datasets --root_dir DATA --func filter --media_root CLIPS
    python -m quicksviewer.preprocess.change_datasets --root_dir DATA --func change_path \
        --src_ptr '^/old/' --tgt_str /new/

The files below --root_dir whose names hold a keyword and no skip keyword are read, and X.jsonl becomes
X_filtered.jsonl or X_newpath.jsonl beside it, with the ledger X_filtered.skipped.jsonl.
"""

import argparse
import re
import sys
from pathlib import Path

from quicksviewer.preprocess.convert import add_means, guarded, show
from quicksviewer.preprocess.job import Means, Settings, convert
from quicksviewer.preprocess.task import LEDGER, MEDIA, Job

ENDINGS = {"filter": "filtered", "change_path": "newpath"}
"""Function -> what is put behind the name of a file."""


def main(argv: list[str] | None = None) -> int:
    """Exit code as in convert.py, the worst of all files."""
    parser = argparse.ArgumentParser(prog="quicksviewer preprocess change_datasets", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--root_dir", required=True)
    add("--keywords", nargs="+", default=[".jsonl"])
    add("--skip_keywords", nargs="+", default=[f"_{ending}" for ending in ENDINGS.values()])
    add("--func", choices=ENDINGS, default="change_path")
    add("--fields", nargs="+", choices=MEDIA, default=list(MEDIA), help="whose media or paths")
    add("--media_root", help="what media paths start at; default: --root_dir (filter)")
    add("--src_ptr", help="regular expression (change_path)")
    add("--tgt_str", default="", help="what its matches become (change_path)")
    add("--rows_per_shard", type=int, default=1000)
    add("--max_skipped", type=float, default=0.5, help="share of rows that may be dropped without failure")
    add_means(parser)
    args = parser.parse_args(argv)
    return guarded(lambda: max(_change(args, path) for path in _files(args)))


def _files(args: argparse.Namespace) -> list[Path]:
    found = [
        path
        for path in sorted(Path(args.root_dir).resolve().rglob("*.jsonl"))
        if any(word in path.name for word in args.keywords)
        and not any(word in path.name for word in [*args.skip_keywords, LEDGER])
        and not any(part.endswith(".shards") for part in path.parts)
    ]
    if not found:
        raise ValueError(f"no .jsonl file below {args.root_dir} has one of {args.keywords} in its name")
    return found


def _change(args: argparse.Namespace, path: Path) -> int:
    name = f"{path.stem}_{ENDINGS[args.func]}"
    where = {"converter": args.func, "name": name, "output": str(path.parent), "fields": tuple(args.fields)}
    if args.func == "filter":
        root = Path(args.media_root or args.root_dir).resolve()
        job = Job(**where, media_root=str(root), check_media="decode")
    else:
        options = {"src_ptr": _pattern(args.src_ptr), "tgt_str": args.tgt_str, "fields": args.fields}
        job = Job(**where, options=options)
    settings = Settings(job=job, inputs=(str(path),), rows_per_shard=args.rows_per_shard)
    report = convert(settings, Means(runner=args.runner, num_workers=args.num_workers))
    print(f"{path}:")
    return show(report, args.max_skipped, f"{path.parent}/{name}.{LEDGER}")


def _pattern(text: str | None) -> str:
    if not text:
        raise ValueError("change_path needs --src_ptr, a regular expression")
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"--src_ptr {text!r} is no regular expression: {error}") from error
    return text


if __name__ == "__main__":
    sys.exit(main())
