"""Every step of the three pipelines as a command: a JSON configuration in, files and one line of figures out.

python -m quicksviewer.qwen_vl_finetune.pipelines.steps modular-train --config config_lora.json
"""

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicksviewer.qwen_vl_finetune.pipelines.journal import new_run_id
from quicksviewer.utils.registry import did_you_mean, load_target

HERE = "quicksviewer.qwen_vl_finetune.pipelines"
SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "qwen_vl"


@dataclass(frozen=True)
class Step:
    """One step: its configuration, its function, the file in configs/qwen_vl that it reads by default."""

    config: str
    function: str
    file: str
    what: str
    begins_run: bool = True
    """False: its run is that of the checkpoint it reads, unless --run-id says another."""


STEPS = {
    "modular-train": Step("ModularTrain", "modular:train", "modular_train", "task 1: train tower and heads"),
    "modular-eval-heads": Step(
        "ModularEval", "modular:eval_heads", "modular_eval_heads", "task 1: measure tower and heads", False
    ),
    "modular-eval-full": Step(
        "ModularFullEval", "modular:eval_full", "modular_eval_full", "task 1: ask the full model", False
    ),
    "lm-map": Step("LmMap", "mapping:map_all", "lm_map", "task 2: annotations to conversations"),
    "lm-train": Step("LmTrain", "lm_supervised:train", "lm_train", "task 2: train on the answers"),
    "lm-infer": Step("LmInfer", "lm_supervised:infer", "lm_infer", "task 2: ask base and adapters", False),
    "hybrid-train": Step("HybridTrain", "hybrid:train", "hybrid_train", "task 3: train all parts"),
    "hybrid-eval": Step("HybridEval", "hybrid:evaluate", "hybrid_eval", "task 3: measure all parts", False),
}
"""Word -> step."""


def shipped(word: str) -> Path:
    """The configuration of a step that comes with this project."""
    return SHIPPED / f"{STEPS[word].file}.json"


def run(word: str, config: str | Path, run_id: str | None = None, overrides: Mapping | None = None) -> dict:
    """One step, in this process: what its function gives back. Raises what it raises."""
    step = STEPS[word]
    kind = load_target(f"{HERE}.settings:{step.config}")
    settings = load_target(f"{HERE}.config:read")(kind, config, overrides)
    if step.begins_run:
        run_id = run_id or new_run_id()
    return load_target(f"{HERE}.{step.function}")(settings, run_id)


def main(argv: list[str] | None = None) -> int:
    """`STEP --config FILE`. Exit code: 0 done, 1 failed, 2 wrong usage."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        rows = "\n".join(f"  {word:18}  {step.what}" for word, step in STEPS.items())
        print(f"usage: steps STEP [--config FILE] [--run-id NAME]\n\n{rows}")
        return 0 if words else 2
    word, *rest = words
    if word not in STEPS:
        hint = did_you_mean(word, STEPS)
        print(f"error: unknown step {word!r}.{hint} Known: {', '.join(STEPS)}", file=sys.stderr)
        return 2
    return script(word, shipped(word), rest)


def script(word: str, default: Path, argv: list[str] | None = None) -> int:
    """What each script of seed 001 does: `--config FILE`, by default the one beside it."""
    parser = argparse.ArgumentParser(description=STEPS[word].what)
    parser.add_argument("--config", default=str(default), help="JSON file (default: %(default)s)")
    parser.add_argument("--run-id", help="what the rows that this step writes are marked with")
    args = parser.parse_args(argv)
    # A script of seed 001 lies beside files of its own names; only here is the work known to begin.
    from quicksviewer.utils.media import MediaError

    try:
        figures = run(word, args.config, args.run_id)
    except (ValueError, OSError, MediaError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{word}: {shown(figures)}")
    return 0


def shown(figures: Mapping[str, Any]) -> str:
    """Figures in a line."""
    return ", ".join(f"{name} {_figure(value)}" for name, value in figures.items())


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return "none" if math.isnan(value) else f"{value:.4f}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
