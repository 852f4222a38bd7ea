"""Probe every medium of a mixture once and write a manifest, from which sizes are read without opening any.

    python -m quicksviewer data index rows.jsonl --output manifest.parquet --model output/tiny/stage3

What was done lies beside the output until it is whole: a run that was killed goes on where it was. Exit code:
0 written (also where media cannot be used: the manifest says why), 2 wrong usage.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from quicksviewer.data.manifest import VERSION, IndexedSource, processor_digest, schema
from quicksviewer.data.mixture import DatasetSpec, Mixture, parse_mixture
from quicksviewer.survey.crew import in_pieces
from quicksviewer.survey.lines import (
    PROBED,
    MediaPiece,
    RowsPiece,
    arrow_schema,
    bound_path,
    guarded_media_bytes,
    joined,
    media_bytes,
    media_bytes_carefully,
    read_piece,
    read_processor,
    rows_bytes,
    without_twice,
)
from quicksviewer.survey.probe import ProbeSettings
from quicksviewer.survey.uids import Uids
from quicksviewer.utils.config import save_json
from quicksviewer.utils.data_util import VIDEO_READERS, MediaError
from quicksviewer.utils.file_hash import HASHES
from quicksviewer.utils.registry import require

PARTS = ".parts"
"""Ending of the folder of pieces."""
PLAN = "plan.json"
ROWS_OF_PIECE, MEDIA_OF_PIECE = 2000, 32


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        write_manifest(args)
    except (ValueError, OSError, MediaError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer data index", description=__doc__.splitlines()[0])
    parser.add_argument("data", help="rows, a mixture's YAML file, or a line of the mini-language")
    parser.add_argument(
        "--output", required=True, help="the manifest, a parquet file; an older one is replaced"
    )
    parser.add_argument("--registry", help="YAML file of named data sets")
    parser.add_argument("--media_root", help="folder or store of the media, for data that names none")
    parser.add_argument("--model", help="folder with a processor: count tokens with it")
    budgets = {"type": int, "nargs": "+", "default": [8, 32, 128, 420], "metavar": "FRAMES"}
    parser.add_argument("--budgets", **budgets, help="frames at which the tokens of videos are told")
    parser.add_argument("--hash", choices=HASHES, default="sampled", help="of media files")
    parser.add_argument(
        "--duplicates", choices=["keep", "refuse"], default="refuse", help="what a row is whose id is taken"
    )
    parser.add_argument("--decoder", choices=VIDEO_READERS, help="default: the processor's, or av")
    parser.add_argument("--seconds", type=float, default=60, help="that one call of a decoder may take")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; 0: this one")
    return parser


def write_manifest(args: argparse.Namespace) -> None:
    """All of the command. Raises ValueError for what cannot be indexed."""
    if args.workers < 0 or min(args.budgets) < 1:
        raise ValueError(f"no such workers or budgets: {args.workers}, {args.budgets}")
    mixture = Mixture(with_root(parse_mixture(args.data, args.registry), args.media_root))
    processor = read_processor(args.model) if args.model else None
    settings, sources = _settings(args, processor), _sources(mixture)
    about = {
        "version": VERSION,
        "sources": [told for told, _, _ in sources],
        "budgets": sorted(set(args.budgets)),
        "processor": processor_digest(processor) if processor else None,
        "settings": asdict(settings),
    }
    output, parts = Path(args.output), Path(args.output + PARTS)
    digests = [hashlib.sha256(rows.tobytes()).hexdigest() for _, _, rows in sources]
    begin(parts, about | {"rows": digests, "pieces": [ROWS_OF_PIECE, MEDIA_OF_PIECE]})
    rows = list(_rows_pieces(sources, args.model))
    names = [name for name, _ in rows]
    run = in_pieces(parts, rows, rows_bytes, rows_bytes, args.workers)
    follow("rows", len(rows), run)
    media = list(_media_pieces(parts, names, settings))
    probes = guarded_media_bytes if args.workers else media_bytes
    run = in_pieces(parts, media, probes, media_bytes_carefully, args.workers)
    follow("media", len(media), run)
    uids = Uids() if args.duplicates == "refuse" else None
    lines, bad = _join(output, parts, names, [name for name, _ in media], processor, about, uids)
    shutil.rmtree(parts)
    print(f"{output}: {lines} lines of {sum(len(one) for _, _, one in sources)} rows, {bad} cannot be used")


def with_root(specs: Iterable[DatasetSpec], media_root: str | None) -> list[DatasetSpec]:
    """The data sets, those that name no root of media with this one."""
    return [replace(spec, media_root=spec.media_root or media_root) for spec in specs]


def _settings(args: argparse.Namespace, processor) -> ProbeSettings:
    told = {"hash": args.hash, "seconds": args.seconds}
    if processor is not None:
        media = processor.media_config
        told |= {"decoder": media.decoder, "fps": media.fps, "max_frames": media.max_frames}
    return ProbeSettings(**told | ({"decoder": args.decoder} if args.decoder else {}))


def _sources(mixture: Mixture) -> list[tuple[dict, tuple, np.ndarray]]:
    """Of each source of a mixture what the manifest says of it, how it is opened, which rows are used."""
    found: dict[tuple, list] = {}
    for part in mixture.parts:
        place = part.spec.path, part.spec.kind, part.spec.media_root
        told = IndexedSource(
            path=place[0],
            media_root=place[2],
            licence=part.spec.licence,
            fingerprint=part.source.fingerprint,
            num_bytes=part.source.num_bytes,
        )
        found.setdefault(place, [asdict(told), place, []])[2].append(part.rows())
    return [(told, place, np.unique(np.concatenate(rows))) for told, place, rows in found.values()]


def begin(parts: Path, about: dict) -> None:
    """The folder of pieces; ValueError where it holds those of other data or settings."""
    plan = parts / PLAN
    if plan.exists() and json.loads(plan.read_text()) != json.loads(json.dumps(about)):
        raise ValueError(f"{parts} holds pieces of other data or settings; remove it to begin anew")
    save_json(plan, about)


def _rows_pieces(sources: list, model: str | None) -> Iterator[tuple[str, RowsPiece]]:
    for number, (told, place, rows) in enumerate(sources):
        for first in range(0, len(rows), ROWS_OF_PIECE):
            some = tuple(rows[first : first + ROWS_OF_PIECE].tolist())
            piece = RowsPiece(number, place, some, told["licence"], model)
            yield f"rows-{number:03d}-{first:012d}.parquet", piece


def _media_pieces(
    parts: Path, rows: Sequence[str], settings: ProbeSettings
) -> Iterator[tuple[str, MediaPiece]]:
    """Every medium of all rows once, in the order in which they are first named."""
    names = ("path", "kind", "bound", "root", "inner")
    media: dict[tuple[str, str], str] = {}
    for piece in rows:
        table = read_piece(parts / piece).select(names)
        for path, kind, *bound in zip(*(table[name].to_pylist() for name in names), strict=True):
            if path is not None and (path, kind) not in media:
                media[path, kind] = bound_path(*bound, path)
    all_media = [(path, kind) for (_, kind), path in media.items()]
    for first in range(0, len(all_media), MEDIA_OF_PIECE):
        some = tuple(all_media[first : first + MEDIA_OF_PIECE])
        yield f"media-{first:012d}.parquet", MediaPiece(some, settings)


def _join(
    output: Path, parts: Path, rows: Sequence[str], media: Sequence[str], processor, about: dict, uids
) -> tuple[int, int]:
    """Write the manifest from its pieces: number of lines, and of those that cannot be used. `uids`: Uids to
    refuse those that are taken by, or None."""
    arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    tables = [read_piece(parts / name) for name in media]
    known = arrow.concat_tables(tables) if tables else arrow_schema(PROBED).empty_table()
    keys = zip(known["path"].to_pylist(), known["kind"].to_pylist(), strict=True)
    line_of = {key: line for line, key in enumerate(keys)}
    whole = schema(about["budgets"], about)
    aside, lines, bad = parts / output.name, 0, 0
    with parquet.ParquetWriter(aside, whole, compression="zstd", write_page_checksum=True) as writer:
        for name in rows:
            said = read_piece(parts / name)
            said = said if uids is None else without_twice(said, uids)
            table = joined(said, known, line_of, processor, about["budgets"], whole)
            writer.write_table(table)
            lines, bad = lines + len(table), bad + len(table) - table["error"].null_count
    os.replace(aside, output)
    return lines, bad


def follow(words: str, total: int, pieces: Iterable[str]) -> None:
    """Exhaust the pieces under a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{words}, in pieces", total=total)
        for _ in pieces:
            progress.advance(task)


if __name__ == "__main__":
    sys.exit(main())
