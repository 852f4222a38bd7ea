"""Where the answers about short events are lost: in the cut, in what is seen, or after that.

    python -m quicksviewer.cubes.brief output/study/cubing

For every method of a finished study: how often the event of one second has cubes of its own, how often the
question about it is answered then and otherwise, and how many wrong answers name a colour that no event has.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from quicksviewer.cubes.methods import Clip, cut_with
from quicksviewer.cubes.report import BRIEF
from quicksviewer.cubes.truth import clips
from quicksviewer.synthetic.corpus import SPLITS
from quicksviewer.synthetic.recipe import SyntheticConfig
from quicksviewer.synthetic.world import World, draw_world
from quicksviewer.utils.config import build, load_mapping


def is_alone(world: World, clip: Clip, cuts: list[int]) -> bool:
    """Whether the frames of the world's one event of one second share no cube with others."""
    (event,) = (event for event in world.events if event.seconds == 1)
    frames = [place for place, second in enumerate(clip.times.tolist()) if world.at(second) is event]
    edges = {0, *cuts, len(clip.times)}
    return bool(frames) and frames[0] in edges and frames[-1] + 1 in edges


def answers(run: Path) -> list[tuple[bool, float, bool]]:
    """(has cubes of its own, score, names a colour of an event) of every question about a short event."""
    recipe, found = str(run / "recipe.yaml"), []
    config = build(SyntheticConfig, load_mapping(recipe)["synthetic"], f"{recipe} > synthetic")
    asked = defaultdict(list)
    for record in json.loads((run / "answers.json").read_text())["records"]:
        if record["kind"] == BRIEF:
            asked[int(record["uid"].split("_")[2])].append(record)  # held_out_NUMBER_brief_FORM
    for index, (clip, _) in enumerate(clips(recipe, str(run / "stage3"))):
        if asked[index]:
            world = draw_world(SPLITS["held_out"] + index, config.world)
            alone = is_alone(world, clip, cut_with(clip.config.kind, clip))
            colours = {event.colour for event in world.events}
            found += [(alone, row["score"], said(row).strip() in colours) for row in asked[index]]
    return found


def said(record: dict) -> str:
    """The answer of a record of the evaluation."""
    return record["answers"][0] if "answers" in record else record["answer"]


def share(scores: list[float]) -> str:
    return f"{sum(scores) / len(scores):.3f} of {len(scores)}" if scores else "-"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quicksviewer.cubes.brief", description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="output folder of `quicksviewer bench cubing`")
    methods = defaultdict(list)
    for run in sorted(parser.parse_args(argv).study.glob("*_*/result.json")):
        methods[run.parent.name.rpartition("_")[0]] += answers(run.parent)
    print("method: right where the event has cubes of its own; where not; wrong, and no event's colour")
    for method, rows in methods.items():
        alone, shared = ([score for is_own, score, _ in rows if is_own == own] for own in (True, False))
        strange = sum(not score and not known for _, score, known in rows)
        print(f"{method}: {share(alone)}; {share(shared)}; {strange} of {len(rows)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
