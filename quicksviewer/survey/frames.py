"""Write the frames that training looks at into a frame store, so that no video is decoded again.

    python -m quicksviewer data frames rows.jsonl --media_root clips --output clips.qvf --fps 1 --size 384

A video is named as its rows name it: the same rows with `media_root: clips.qvf` read the store. A run that
was killed goes on where it was. Exit code: 0 written, 1 written without the videos that cannot be used,
2 wrong usage.
"""

import argparse
import os
import shutil
import sys
import tempfile
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.preprocess import SampleError, parse_sample
from quicksviewer.survey.crew import alone, in_pieces
from quicksviewer.survey.index import PARTS, begin, follow, with_root
from quicksviewer.utils.data_util import (
    VIDEO_READERS,
    MediaError,
    MediaLimits,
    in_chunks,
    open_video,
    plan_frames,
)
from quicksviewer.utils.frame_store import ENCODED, QUALITY, FrameStore, FrameStoreWriter
from quicksviewer.utils.mm_utils import resize_frames
from quicksviewer.utils.stores import StoredPath, open_store
from quicksviewer.utils.tsv import STORE_FPS, TSVReader

MAX_FRAMES = 1 << 16
"""Of one video."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How videos become frames. `size`: of the square to which they are squashed; None: their own."""

    fps: float = 1.0
    size: int | None = None
    format: str = "jpeg"
    quality: int = QUALITY
    decoder: str = "av"
    seconds: float = 4 * 3600

    def __post_init__(self):
        if not (0 < self.fps < float("inf") and 1 <= self.quality <= 100 and (self.size or 1) > 0):
            raise ValueError(f"no such rate, quality or size: {self}")


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        cut = Cut(**{name: getattr(args, name) for name in asdict(Cut())})
        mixture = Mixture(with_root(parse_mixture(args.data, args.registry), args.media_root))
        bad = write_frames(mixture, Path(args.output), cut, args.workers)
    except (ValueError, OSError, MediaError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason in bad:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer data frames", description=__doc__.splitlines()[0])
    parser.add_argument("data", help="rows, a mixture's YAML file, or a line of the mini-language")
    parser.add_argument("--output", required=True, help="the store; it must not be there yet")
    parser.add_argument("--registry", help="YAML file of named data sets")
    parser.add_argument("--media_root", help="folder or store of the media, for data that names none")
    parser.add_argument("--fps", type=float, default=1.0, help="frames per second that are kept")
    parser.add_argument("--size", type=int, help="side of the square; default: frames keep their size")
    parser.add_argument("--format", choices=[*ENCODED, "raw"], default="jpeg")
    parser.add_argument("--quality", type=int, default=QUALITY, help="of jpeg and webp, 1 to 100")
    parser.add_argument("--decoder", choices=VIDEO_READERS, default="av")
    parser.add_argument("--seconds", type=float, default=4 * 3600, help="for one video at most")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; 0: this one")
    return parser


def write_frames(mixture: Mixture, output: Path, cut: Cut, workers: int) -> list[str]:
    """Write the store of all videos of a mixture; the reasons of those that are left out."""
    if output.exists():
        raise ValueError(f"{output} exists; a store is written once")
    parts = Path(f"{output}{PARTS}")
    begin(parts, {"mixture": mixture.fingerprint, "cut": asdict(cut)})
    videos, bad = _videos(mixture)
    pieces = [(f"{number:012d}.qvf", (name, path, cut)) for number, (name, path) in enumerate(videos.items())]
    follow("videos", len(pieces), in_pieces(parts, pieces, video_bytes, _carefully, workers))
    with FrameStoreWriter(output, cut.format, cut.quality) as store:
        for piece, (name, *_) in pieces:
            letters = (parts / piece).read_bytes()
            if letters.startswith(UNUSABLE):
                bad.append(letters.removeprefix(UNUSABLE).decode())
            else:
                _append(store, parts / piece, name)
    shutil.rmtree(parts)
    return bad


def _videos(mixture: Mixture) -> tuple[dict[str, str], list[str]]:
    """Name of each video of a mixture -> its path; then the reasons of rows that are no samples."""
    videos, bad = {}, []
    for index in range(len(mixture)):
        try:
            media = parse_sample(*mixture[index]).media
        except SampleError as error:
            bad.append(str(error))
            continue
        for path in (ref.path for ref in media if ref.kind == "video"):
            name = getattr(path, "name", None) or getattr(path, "path", path)
            if videos.setdefault(name, path) != path:
                raise ValueError(f"{name} is both {videos[name]} and {path}; make a store for each data set")
    return videos, bad


UNUSABLE = b"UNUSABLE"
"""A piece that begins so holds a reason and no store."""


def video_bytes(what: tuple[str, str, Cut]) -> bytes:
    """A store of one video, or UNUSABLE and the reason."""
    name, path, cut = what
    with tempfile.TemporaryDirectory() as folder:
        piece = Path(folder, "piece.qvf")
        try:
            with FrameStoreWriter(piece, cut.format, cut.quality) as store:
                _cut(store, name, path, cut)
        except MediaError as error:
            return UNUSABLE + str(error).encode()
        return piece.read_bytes()


def _carefully(what: tuple[str, str, Cut]) -> bytes:
    try:
        return alone(video_bytes, what)
    except BrokenProcessPool:
        return UNUSABLE + f"{what[1]}: looking at it crashes".encode()


def _cut(store: FrameStoreWriter, name: str, path: str, cut: Cut) -> None:
    """Put the frames of a video into a store; those of a TSV store as they are where they can be."""
    if isinstance(path, StoredPath) and cut.size is None and cut.format == "jpeg" and cut.fps == STORE_FPS:
        stored = open_store(path.store)
        if isinstance(stored, TSVReader) and path.name in stored:
            return store.append(name, stored.jpegs(path.name), STORE_FPS)
    limits = MediaLimits(isolation="process", decode_seconds=cut.seconds)
    with open_video(path, cut.decoder, limits) as video:
        info = video.probe()
        plan = plan_frames(info, cut.fps, MAX_FRAMES)
        if plan.policy != "rate":
            asked = f"{info.duration:.0f} s at {cut.fps:g} a second"
            raise MediaError(path, f"{asked} are more than {MAX_FRAMES} frames (--fps)")
        frames = (frame for some in in_chunks(video, plan.times) for frame in _sized(some, cut.size))
        store.append(name, frames, plan.fps, info.duration)


def _sized(frames_NHWC: np.ndarray, size: int | None) -> np.ndarray:
    """Frames squashed to a square as training does it: uint8 (N, H, W, 3)."""
    if size is None:
        return frames_NHWC
    return resize_frames(frames_NHWC, size).permute(0, 2, 3, 1).numpy()


def _append(store: FrameStoreWriter, piece: Path, name: str) -> None:
    """Put the video of a piece into the store, its bytes untouched."""
    with FrameStore(piece) as one:
        info = one.as_video(name).probe()
        indices = range(info.num_frames)
        frames = one.frames(name) if one.format == "raw" else [one.encoded(name, index) for index in indices]
        store.append(name, frames, info.fps, info.duration)


if __name__ == "__main__":
    sys.exit(main())
