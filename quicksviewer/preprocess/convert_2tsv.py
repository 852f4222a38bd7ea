"""Write videos into the published TSV store, one JPEG per second of each.

    python -m quicksviewer.preprocess.convert_2tsv --input VIDEOS --output STORE

VIDEOS is a folder of videos; or JSONL rows of this project, whose videos lie below --media_root (the rows
become `chat.jsonl` of the store); or JSONL rows that bring their frames,
{"video": NAME, "images": [BASE64 JPEG, ...]}.
--append adds to a store, --align repairs the index of one and looks at every row.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quicksviewer.preprocess import store
from quicksviewer.preprocess.convert import absolute, add_means, guarded
from quicksviewer.preprocess.files import Place, data_files
from quicksviewer.preprocess.index import VIDEO_SUFFIXES
from quicksviewer.preprocess.job import Means, frames_tasks, run_all
from quicksviewer.preprocess.reading import Piece, names_of, pieces_of, rows_of, shards_of
from quicksviewer.preprocess.task import LEDGER, to_line
from quicksviewer.utils.data_util import MediaError, TSVReader, load_image

WORK, PLAN, CHAT = ".2tsv.shards", "plan.json", "chat.jsonl"


@dataclass(frozen=True)
class Given:
    """What `--input` says: videos by path, rows that name them, rows that bring frames."""

    videos: list[str]
    pieces: list[Piece]
    brings_frames: bool


def main(argv: list[str] | None = None) -> int:
    """Exit code as in convert.py; 1 when a video could not be stored, or a row be read."""
    parser = argparse.ArgumentParser(prog="quicksviewer preprocess 2tsv", description=__doc__.splitlines()[0])
    parser.add_argument("--input", help="a folder of videos, or JSONL files")
    parser.add_argument("--output", required=True, help="folder of the store")
    parser.add_argument("--media_root", help="folder or URL of the videos that rows name")
    parser.add_argument("--append", action="store_true", help="add to the store that is there")
    parser.add_argument(
        "--align", action="store_true", help="repair the index of the store, look at its rows"
    )
    parser.add_argument("--decoder", default="av")
    parser.add_argument("--isolation", choices=("none", "process"), default="process")
    parser.add_argument("--frame_side", type=int, default=448, help="shorter side at most; 0: of the video")
    add_means(parser)
    args = parser.parse_args(argv)
    return guarded(lambda: align(Path(args.output)) if args.align else _store(args))


def _store(args: argparse.Namespace) -> int:
    if not args.input:
        raise ValueError("--input is missing: what shall be stored")
    folder, given = Path(absolute(args.output)), _read_input(absolute(args.input), args.media_root)
    plan = _plan(folder, given, args.append)
    if plan is None:
        print(f"all of it is in {folder}")
        return 0
    root, work = absolute(args.media_root) or absolute(args.input), str(folder / WORK)
    if given.brings_frames:
        shards = shards_of(given.pieces, store.VIDEOS_PER_TASK)
        behind = str(folder) if plan["base"] else None
        tasks = [
            store.FramesTask(work, shard.number, root, (), rows=shard, behind=behind) for shard in shards
        ]
    else:
        tasks = frames_tasks(work, root, plan["videos"], args.decoder, args.frame_side, args.isolation)
    summaries = run_all(tasks, Means(runner=args.runner, num_workers=args.num_workers), "frames")
    return _finish(folder, plan, given, tasks, summaries)


def _read_input(word: str, media_root: str | None) -> Given:
    place = Place(word)
    if place.is_folder() and (videos := [n for n in place.names() if n.lower().endswith(VIDEO_SUFFIXES)]):
        return Given(videos, [], False)
    places = data_files((word,))
    pieces = [
        piece
        for place, name in zip(places, names_of(places), strict=True)
        for piece in pieces_of(place, name, "rows", store.VIDEOS_PER_TASK, {})
    ]
    first = next((row for piece in pieces for _, row in rows_of(piece, ())), None)
    if isinstance(first, dict) and "images" in first:
        return Given([], pieces, True)
    if not media_root:
        raise ValueError("rows name videos below a folder: give it, --media_root")
    return Given(list(dict.fromkeys(_videos(pieces))), pieces, False)


def _videos(pieces: list[Piece]) -> Iterator[str]:
    for piece in pieces:
        for number, row in rows_of(piece, ()):
            said = row.get("video", row.get("video_id")) if isinstance(row, dict) else None
            names = [said] if isinstance(said, str) else said
            if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
                raise ValueError(
                    f"{piece.url}, row {number}: expected a video or a list of them, got {said!r}"
                )
            yield from names


def _plan(folder: Path, given: Given, append: bool) -> dict | None:
    """What is to be stored behind what is there; None when nothing is. A plan that was begun is kept."""
    path = folder / WORK / PLAN
    wanted = {"asked": given.videos, "inputs": [[one.url, one.begin, one.end] for one in given.pieces]}
    if path.exists():
        plan = json.loads(path.read_text())
        if {key: plan[key] for key in wanted} != wanted:
            raise ValueError(f"{folder / WORK} is of another input: finish that, or delete it")
        return plan
    base = store.last_of(folder)
    known = set(TSVReader(folder).names) if base else set()
    todo = [name for name in given.videos if name not in known]
    if base and not todo and not given.brings_frames:
        return None
    if base and not append:
        raise ValueError(f"{folder} holds a store of {len(known)} videos: --append adds to it")
    chat = (folder / CHAT).stat().st_size if (folder / CHAT).exists() else 0
    plan = {"base": base, "chat": chat, "videos": todo, **wanted}
    Place(str(folder)).write(f"{WORK}/{PLAN}", to_line(plan))
    return plan


def _finish(folder: Path, plan: dict, given: Given, tasks: list, summaries: list[dict]) -> int:
    place, work = Place(str(folder)), folder / WORK
    failed = {name: why for summary in summaries for name, why in summary["failed"].items()}
    parts = [(work / task.folder, summary["bytes"]) for task, summary in zip(tasks, summaries, strict=True)]
    rows = store.join(parts, folder, plan["base"])
    if given.pieces and not given.brings_frames:
        before = (folder / CHAT).read_bytes()[: plan["chat"]] if plan["chat"] else b""
        with place.writing(CHAT) as file:
            file.write(before)
            for piece in given.pieces:
                kept = (row for _, row in rows_of(piece, ()) if not set(_videos_of(row)) & failed.keys())
                file.writelines(map(to_line, kept))
    place.write(LEDGER, b"".join(to_line({"video": name, "reason": why}) for name, why in failed.items()))
    place.remove(WORK)
    print(f"{sum(summary['videos'] for summary in summaries)} videos stored, {rows} in {folder}")
    if failed:
        print(f"error: {len(failed)} could not be stored, see {folder / LEDGER}", file=sys.stderr)
    return 1 if failed else 0


def _videos_of(row: dict) -> list[str]:
    said = row.get("video", row.get("video_id"))
    return [said] if isinstance(said, str) else said


def align(folder: Path) -> int:
    """Cut off a row that was not written to its end, write the index anew, and decode every frame.

    Exit code 1 when a row cannot be read; the index is right in any case.
    """
    path, cut = folder / store.ROWS, 0
    size = path.stat().st_size
    with path.open("r+b") as file:
        while size - cut and (file.seek(size - cut - 1), file.read(1))[1] != b"\n":
            cut += 1
        file.truncate(size - cut)
    rows, bad = store.rebuild_index(folder), []
    with TSVReader(folder) as reader:
        for name in reader.names:
            try:
                for jpeg in reader.jpegs(name):
                    load_image(jpeg)
            except MediaError as error:
                bad.append(f"{name}: {error}")
    print(f"{rows} rows in {folder}" + (f", {cut} bytes of an unfinished one cut off" if cut else ""))
    for line in bad:
        print(f"error: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
