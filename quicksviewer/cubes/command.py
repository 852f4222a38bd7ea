"""Show how a video is cut, by any number of methods.

    python -m quicksviewer cubes video.mp4 --methods momentum uniform change_point optimal codec -o strip.png
    python -m quicksviewer cubes video.mp4 --model-path output/quickstart/stage3 -o strip.html

Without a model, small pictures stand for the tower's features, and learned gates are as they begin. With
one, its tower is used, and its gate for the method of its kind. Prints for each method: cubes, the squared
distance of frames to the mean of their cube over the least possible, and how well cuts agree with the codec's
key frames and with the largest changes of colour (F1 at +-1 frame).
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from quicksviewer.cubes.measures import boundary_f1, error_ratio
from quicksviewer.cubes.methods import METHODS, Clip, cut_with, small_pictures
from quicksviewer.cubes.picture import draw, save
from quicksviewer.model.config import CubingConfig
from quicksviewer.utils.data_util import MediaError, read_video
from quicksviewer.utils.packets import key_frame_samples, read_packets

DEFAULT = ("momentum", "uniform", "change_point", "optimal", "codec")
SHOWN = 64
"""Pixels of a side of the frames in the picture when there is no model."""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 the video could not be used, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        if unknown := [name for name in args.methods if name not in METHODS]:
            raise ValueError(f"unknown methods {unknown}; known: {', '.join(METHODS)}")
        if args.output and Path(args.output).suffix not in (".png", ".html"):
            raise ValueError(f"--output {args.output} must end in .png or .html")
        clip_of = with_model(args) if args.model_path else without_model(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        clip = clip_of(args.video)
        cuts = {name: cut_with(name, clip) for name in args.methods}
        report(clip, cuts)
        if args.output:
            lines = [f"{args.video}: {len(clip.pixels)} frames, {clip.num_cubes} cubes"]
            save(args.output, draw(clip.pixels, clip.times, cuts, lines))
            print(f"written to {args.output}")
    except (MediaError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer cubes", description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT), help=", ".join(METHODS))
    parser.add_argument("-o", "--output", help="picture: .png or .html")
    parser.add_argument("--model-path", help="checkpoint whose tower and gate are used")
    parser.add_argument("--model-base", help="language model of a LoRA checkpoint, if it was moved")
    parser.add_argument("--fps", type=float, default=1.0, help="frames per second, without a model")
    parser.add_argument("--max-frames", type=int, default=420, help="most frames, without a model")
    parser.add_argument("--frames-per-cube", type=float, help="default: the model's, or 5")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def without_model(args):
    """A function from a path to a Clip of small pictures."""
    config = CubingConfig(frames_per_cube=args.frames_per_cube or CubingConfig.frames_per_cube)

    def clip_of(path: str) -> Clip:
        frames, plan = read_video(path, args.fps, args.max_frames)
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        shown = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), SHOWN).round().byte()
        return Clip(path, torch.tensor(plan.times), shown, small_pictures(pixels), config)

    return clip_of


def with_model(args):
    """A function from a path to a Clip with the features of a model's tower, and its gate."""
    from dataclasses import replace

    from quicksviewer.model.builder import load_pretrained_model
    from quicksviewer.model.multimodal_cubing import pool_frames

    loaded = load_pretrained_model(args.model_path, args.model_base, args.device)
    model, config = loaded.model.eval(), loaded.model.mm_config.cubing
    if args.frames_per_cube:
        config = replace(config, frames_per_cube=args.frames_per_cube)
        model.cubing.config = config

    def clip_of(path: str) -> Clip:
        video = loaded.processor.load_video(path)
        with torch.no_grad():
            features = pool_frames(model.vision_tower(video.pixels.to(model.device)))
        return Clip(path, video.times.cpu(), video.pixels.cpu(), features.cpu(), config, model.cubing)

    return clip_of


def report(clip: Clip, cuts: dict[str, list[int]]) -> None:
    """The table of all methods."""
    keys = key_frame_samples(read_packets(clip.path), clip.times.tolist())
    colours = cut_with("colours", clip)
    table = Table(title=f"{clip.path}: {len(clip.pixels)} frames, {len(keys)} with a new key frame")
    for column in ("method", "cubes", "error / least", "F1 key frames", "F1 colours", "cuts (s)"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, starts in cuts.items():
        seconds = " ".join(f"{float(clip.times[start]):.1f}" for start in starts[:12])
        more = " ..." if len(starts) > 12 else ""
        row = [str(len(starts) + 1), f"{error_ratio(clip.features, starts):.2f}"]
        row += [f"{boundary_f1(starts, true):.2f}" for true in (keys, colours)]
        table.add_row(name, *row, seconds + more)
    Console(markup=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
