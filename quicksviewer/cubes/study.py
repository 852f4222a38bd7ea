"""The study of cubings: the same tiny model, trained from the same start with every method.

    python -m quicksviewer data make --recipe tiny
    python -m quicksviewer bench cubing --methods uniform momentum soft --seeds 3
    python -m quicksviewer bench cubing --steps 2 2 2 --seeds 1 --limit 8 --document trial.md

Every method makes as many cubes of a video as every other, so tokens, steps, data and their order are equal;
only the cubing differs. For each method and seed: the three stages of the recipe, then the held-out questions
by kind, and the cuts of held-out videos against the events that were drawn (F1 at +-1 frame) and against the
least possible squared distance on the features of the same tower. A run that is complete is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from quicksviewer.train.stages import STAGES
from quicksviewer.utils.config import load_mapping
from quicksviewer.utils.recipes import recipe_path
from quicksviewer.utils.registry import lookup

METHODS = {
    "uniform": {"kind": "uniform"},
    "change_point": {"kind": "change_point"},
    "optimal": {"kind": "optimal"},
    "published": {"kind": "momentum", "energy_features": False, "energy_prior": 0.0},
    "momentum": {"kind": "momentum"},
    "cumulative": {"kind": "cumulative"},
    "reinmax": {"kind": "reinmax"},
    "subset": {"kind": "subset"},
    "soft": {"kind": "soft"},
    "router": {"kind": "router"},
    "soft_without_prior": {"kind": "soft", "energy_prior": 0.0},
}
"""Name in the study -> settings of the cubing. `momentum` is the published gradient with our gate."""
DEFAULT = ("uniform", "change_point", "optimal", "published", "momentum", "subset", "soft", "router")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a run failed, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        for method in args.methods:
            lookup(METHODS, method, "method of the study")
        recipe = load_mapping(recipe_path(args.recipe))
        if missing := [key for key in ("synthetic", "mm") if key not in recipe]:
            raise ValueError(f"recipe {args.recipe!r} has no section {', '.join(missing)}: it reads no world")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = []
    for seed in range(args.seeds):  # seed by seed, so that an early end leaves a table of all methods
        for method in args.methods:
            try:
                results.append(result_of(method, seed, recipe, args))
            except subprocess.CalledProcessError as error:
                print(f"error: {method}, seed {seed}: {error}\nits log: {error.output}", file=sys.stderr)
                return 1
            from quicksviewer.cubes.report import write_document

            write_document(Path(args.document), results, args)
            figures = Path(args.document).with_suffix(".json")
            figures.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {args.document}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer bench cubing", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT), help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs=3, help="of the three stages (default: the recipe's)")
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    parser.add_argument("--output", default="output/study/cubing", help="runs, kept between calls")
    parser.add_argument("--document", default="docs/studies/cubing.md")
    return parser


def result_of(method: str, seed: int, recipe: dict, args) -> dict:
    """Train and measure, or read what was measured before with the same settings."""
    folder = Path(args.output) / f"{method}_{seed}"
    settings = {
        "method": method,
        "cubing": METHODS[method],
        "seed": seed,
        "recipe": args.recipe,
        "steps": args.steps,
        "limit": args.limit,
    }
    done = folder / "result.json"
    if done.is_file():
        result = json.loads(done.read_text())
        if result["settings"] == settings:
            return result
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    train(folder, method, seed, recipe, args)
    seconds = time.time() - started
    measured = measure(folder, args)
    result = {"settings": settings, "train_seconds": round(seconds, 1), **measured}
    done.write_text(json.dumps(result, indent=1) + "\n")
    return result


def train(folder: Path, method: str, seed: int, recipe: dict, args) -> None:
    """The three stages, each in a process of its own, with the log in the run's folder."""
    cubing = {**recipe["mm"].get("cubing", {}), **METHODS[method]}
    own = folder / "recipe.yaml"
    own.write_text(yaml.safe_dump({**recipe, "mm": {**recipe["mm"], "cubing": cubing}}))
    before = None
    for place, stage in enumerate(STAGES):
        flags = [
            "--recipe",
            str(own),
            "--stage",
            stage,
            "--output_dir",
            str(folder / stage),
            "--seed",
            str(seed),
        ]
        if args.steps:
            flags += ["--max_steps", str(args.steps[place])]
        if before:
            flags += ["--model_name_or_path", str(before)]
        run(folder / f"{stage}.log", "quicksviewer.train.train", *flags)
        before = folder / stage


def measure(folder: Path, args) -> dict:
    """Answers and cuts of the trained model, by processes that end with their memory."""
    answers, cuts = folder / "answers.json", folder / "cuts.json"
    model = str(folder / "stage3")
    data = str(Path(load_mapping(folder / "recipe.yaml")["synthetic"].get("folder", "output/world")) / "data")
    flags = ["--model-path", model, "--data", data, "--output", str(answers), "--device", "cpu"]
    flags += ["--limit", str(args.limit)] if args.limit else []
    run(folder / "eval.log", "quicksviewer", "eval", "world", *flags)
    run(folder / "cuts.log", "quicksviewer.cubes.truth", str(folder / "recipe.yaml"), model, str(cuts))
    by_kind = json.loads(answers.read_text())["by_kind"]
    accuracy = {kind: round(row["accuracy"], 4) for kind, row in by_kind.items()}
    items = {kind: row["items"] for kind, row in by_kind.items()}
    return {"accuracy": accuracy, "items": items, "cuts": json.loads(cuts.read_text())}


def run(log: Path, module: str, *words: str) -> None:
    """A module in a process; CalledProcessError with the end of its log where it fails."""
    command = [sys.executable, "-m", module, *words]
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ).returncode
    if code:
        raise subprocess.CalledProcessError(code, command, f"{log}\n{log.read_text()[-1500:]}")


if __name__ == "__main__":
    sys.exit(main())
