"""How a trained model cuts the held-out videos of its world, against the events that were drawn.

python -m quicksviewer.cubes.truth RECIPE MODEL OUT.json
"""

import json
import sys
from pathlib import Path

import torch

from quicksviewer.cubes.measures import boundary_f1, least_error, within_error
from quicksviewer.cubes.methods import Clip, cut_with
from quicksviewer.model.builder import load_pretrained_model
from quicksviewer.model.multimodal_cubing import pool_frames
from quicksviewer.synthetic.corpus import SPLITS
from quicksviewer.synthetic.recipe import SyntheticConfig
from quicksviewer.synthetic.world import World, draw_world
from quicksviewer.utils.config import build, load_mapping

BESIDE = ("uniform", "change_point", "optimal")
"""Yardsticks on the same features."""


def event_cuts(world: World, times: list[float]) -> list[int]:
    """The first sampled frame of every event but the first, of events that a frame was sampled of."""
    events = [world.at(second) for second in times]
    return [i for i in range(1, len(events)) if events[i] is not events[i - 1]]


def recall(found: list[int], true: list[int]) -> float:
    """Share of true cuts with a cut within one frame; 1 where there is none to find."""
    return sum(any(abs(cut - place) <= 1 for cut in found) for place in true) / len(true) if true else 1.0


def judge(clip: Clip, found: list[int], true: list[int]) -> dict[str, float]:
    """F1 and recall, and squared distances: within the cubes, the least possible, and of one cube for all."""
    features = clip.features
    return {
        "f1": boundary_f1(found, true),
        "recall": recall(found, true),
        "within": within_error(features, found),
        "least": least_error(features, len(found) + 1),
        "whole": within_error(features, []),
    }


def together(judged: list[dict[str, float]]) -> dict[str, float]:
    """Means of F1 and recall over videos; sums of distances over that of one cube for each whole video.

    Of some videos the least distance is nothing, so a ratio to it would say nothing.
    """
    count, whole = len(judged), sum(row["whole"] for row in judged)
    means = {name: sum(row[name] for row in judged) / count for name in ("f1", "recall")}
    shares = {name: sum(row[name] for row in judged) / whole for name in ("within", "least")}
    return {name: round(value, 4) for name, value in (means | shares).items()}


def clips(recipe: str, model: str):
    """(clip, true cuts) of every held-out video."""
    config = build(SyntheticConfig, load_mapping(recipe)["synthetic"], f"{recipe} > synthetic")
    loaded = load_pretrained_model(model, None, "cpu")
    seeing, cubing = loaded.model.eval(), loaded.model.cubing
    for index in range(config.corpus.held_out):
        path = str(config.place("data") / f"videos/held_out/{index:05d}.mp4")
        video = loaded.processor.load_video(path)
        with torch.no_grad():
            features = pool_frames(seeing.vision_tower(video.pixels))
        world = draw_world(SPLITS["held_out"] + index, config.world)
        clip = Clip(path, video.times, video.pixels, features, loaded.model.mm_config.cubing, cubing)
        yield clip, event_cuts(world, video.times.tolist())


def main(argv: list[str] | None = None) -> int:
    recipe, model, out = sys.argv[1:] if argv is None else argv
    judged = {name: [] for name in ("own", *BESIDE)}
    for clip, true in clips(recipe, model):
        for name, rows in judged.items():
            found = cut_with(clip.config.kind if name == "own" else name, clip)
            rows.append(judge(clip, found, true))
    figures = {name: together(rows) for name, rows in judged.items()}
    Path(out).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
