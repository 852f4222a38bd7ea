"""Videos become the published TSV store: one JPEG per second of each, many videos in one file.

Tasks write stores of a few videos; `join` puts them behind each other and deletes each part as it goes, so
that the disk never holds the frames twice.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quicksviewer.preprocess.files import Place
from quicksviewer.preprocess.reading import Shard, rows_of
from quicksviewer.preprocess.schema import TEXT, SchemaError, check_row, many
from quicksviewer.preprocess.utils import inside, opened_medium, shrink
from quicksviewer.utils.data_util import (
    MediaError,
    MediaLimits,
    TSVReader,
    TSVWriter,
    in_chunks,
    open_video,
    plan_frames,
)
from quicksviewer.utils.tsv import LAST, NAMES, OFFSETS, ROWS, STORE_FPS, rebuild_index

VIDEOS_PER_TASK = 16
DECODE_SECONDS = 4 * 3600.0
"""For a video, of which every second is looked at."""
DONE = "done.json"
FRAME_ROWS = {"video": TEXT, "images": many(TEXT)}
"""Rows that bring their frames: a name and base64 JPEG pictures, one per second."""


def seconds_of(ref: str, decoder: str, side: int, limits: MediaLimits) -> Iterator[np.ndarray]:
    """A frame of each second of a video, uint8 (H, W, 3), from its middle; see `shrink` for `side`.

    Raises MediaError.
    """
    with open_video(ref, decoder, limits) as video:
        info = video.probe()
        limits.check_pictures(ref, int(info.duration))
        times = plan_frames(info, STORE_FPS, max_frames=int(info.duration) + 2).times
        for frames in in_chunks(video, times):
            yield from (shrink(frame, side) for frame in frames)


@dataclass(frozen=True)
class FramesTask:
    """Writes a store of some videos. Gives its size and the videos that could not be read, with reasons."""

    work: str
    number: int
    media_root: str
    videos: tuple[str, ...]
    decoder: str = "av"
    frame_side: int = 0
    isolation: str = "process"
    """Where videos are decoded: see MediaLimits."""
    rows: Shard | None = None
    """Rows that bring their frames, instead of videos."""
    behind: str | None = None
    """Folder of the store that this is put behind: rows whose video is in it are left out."""

    @property
    def folder(self) -> str:
        return f"frames-{self.number:06d}"

    def __call__(self) -> dict:
        work = Place(self.work)
        if work.exists(f"{self.folder}/{DONE}"):
            return json.loads(work.read(f"{self.folder}/{DONE}"))
        work.remove(self.folder)
        written, failed = [], {}
        with TSVWriter(work.path(self.folder)) as store:
            for name, frames in self._frames(failed):
                try:
                    store.append(name, frames)
                    written.append(name)
                except (MediaError, ValueError) as error:
                    failed[name] = str(error)
        size = os.path.getsize(work.path(f"{self.folder}/{ROWS}"))
        summary = {"videos": len(written), "bytes": size, "failed": failed}
        work.write(f"{self.folder}/{DONE}", json.dumps(summary).encode())
        return summary

    def _frames(self, failed: dict[str, str]) -> Iterator[tuple[str, Iterable]]:
        """Each name and its frames, which are decoded while the store takes them."""
        for name in self.videos:
            yield name, self._decode(name)
        known = TSVReader(self.behind) if self.rows and self.behind else ()
        for piece in self.rows.pieces if self.rows else ():
            for number, row in rows_of(piece, FRAME_ROWS):
                try:
                    columns = check_row(row, FRAME_ROWS, f"{piece.name}, row {number}")
                    if columns["video"] not in known:
                        yield columns["video"], _jpegs(columns["images"])
                except SchemaError as error:
                    failed[f"{piece.name}, row {number}"] = str(error)

    def _decode(self, name: str) -> Iterator[np.ndarray]:
        root = Place(self.media_root)
        path = inside(root, name)
        if not root.exists(path):
            raise MediaError(name, f"is not below {self.media_root}")
        with opened_medium(root, path) as medium:
            limits = MediaLimits(isolation=self.isolation, decode_seconds=DECODE_SECONDS)
            yield from seconds_of(medium, self.decoder, self.frame_side, limits)


def _jpegs(texts: list[str]) -> Iterator[bytes]:
    return (base64.b64decode(text, validate=True) for text in texts)


def video_chunks(videos: Sequence[str]) -> list[tuple[str, ...]]:
    """Videos of each task, every one once, in order."""
    unique = list(dict.fromkeys(videos))
    return [
        tuple(unique[first : first + VIDEOS_PER_TASK]) for first in range(0, len(unique), VIDEOS_PER_TASK)
    ]


def last_of(store: Path) -> int:
    """Bytes of the rows of a store; 0 when there is none."""
    path = store / LAST
    return int(path.read_text()) if path.exists() else 0


def join(parts: Sequence[tuple[Path, int]], store: Path, base: int) -> int:
    """Rows of the parts (folder, bytes) behind the `base` bytes that the store had; the number of its rows.

    A part is deleted when it is on the disk of the store, so a call that was cut off goes on where it was.
    ValueError where a name comes twice.
    """
    store.mkdir(parents=True, exist_ok=True)
    _refuse_twice(parts, store, base)
    joined = sum(size for folder, size in parts if not (folder / ROWS).exists())
    with open(store / ROWS, "ab") as out:
        if out.tell() < base + joined:
            raise ValueError(f"{store / ROWS} has {out.tell()} bytes, {base + joined} were written to it")
        out.truncate(base + joined)
        for folder, _ in parts:
            if (folder / ROWS).exists():
                with open(folder / ROWS, "rb") as part:
                    shutil.copyfileobj(part, out, 1 << 22)
                out.flush()
                os.fsync(out.fileno())
                (folder / ROWS).unlink()
    return rebuild_index(store)


def _refuse_twice(parts: Sequence[tuple[Path, int]], store: Path, base: int) -> None:
    """ValueError where a name is in two parts, or in a part and in the rows that the store had."""
    owners = dict.fromkeys(_names_before(store, base), store)
    for folder, _ in parts:
        for name in json.loads((folder / NAMES).read_bytes()):
            if (owner := owners.setdefault(name, folder)) != folder:
                raise ValueError(
                    f"{name!r} comes twice, in {owner.name} and in {folder.name}: give each video one row, "
                    f"delete {folder.parent} and begin anew"
                )


def _names_before(store: Path, base: int) -> Iterator[str]:
    """Names of the rows that begin before byte `base` of a store."""
    if base:
        offsets = list(map(int, (store / OFFSETS).read_bytes().split()))
        rows = json.loads((store / NAMES).read_bytes())
        yield from (name for name, row in rows.items() if offsets[row] < base)
