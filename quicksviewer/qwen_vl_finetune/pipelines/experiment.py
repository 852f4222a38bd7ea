"""Steps in their order, each a process of its own; the first that fails ends the experiment.

A process of its own gives a step the whole device and leaves nothing behind for the next. All get one
run's name.
"""

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from quicksviewer.qwen_vl_finetune.pipelines.journal import new_run_id
from quicksviewer.qwen_vl_finetune.pipelines.steps import HERE, shipped

RUNNER = f"{HERE}.steps"


@dataclass(frozen=True)
class Stage:
    """A step of an experiment: the flag that names its configuration, and that file's name in seed 001."""

    step: str
    flag: str
    file: str


TRAIN_TASK_1 = Stage("modular-train", "--train-config", "config_lora.json")
EXPERIMENTS: dict[str, tuple[Stage, ...]] = {
    "modular-heads": (
        TRAIN_TASK_1,
        Stage("modular-eval-heads", "--eval-config", "subtask_vit_head_eval/config_eval.json"),
    ),
    "modular-full": (
        TRAIN_TASK_1,
        Stage("modular-eval-full", "--eval-config", "subtask_full_model_eval/config_full_model_eval.json"),
    ),
    "lm": (
        Stage("lm-map", "--map-config", "config_map.json"),
        Stage("lm-train", "--train-config", "config_lora_trainer.json"),
        Stage("lm-infer", "--eval-config", "config_lora_infer.json"),
    ),
    "hybrid": (
        Stage("hybrid-train", "--train-config", "config_hybrid_train.json"),
        Stage("hybrid-eval", "--eval-config", "config_hybrid_eval.json"),
    ),
}
"""Name -> its steps in order."""


def main(name: str, folder: Path | None = None, argv: list[str] | None = None) -> int:
    """Run an experiment. Exit code: 0 all done, otherwise that of the step that failed.

    `folder` holds the configurations under seed 001's names; without, those of configs/qwen_vl are read.
    """
    stages = EXPERIMENTS[name]
    parser = argparse.ArgumentParser(
        description=f"{' -> '.join(s.step for s in stages)}; stops where one fails"
    )
    for stage in stages:
        default = folder / stage.file if folder else shipped(stage.step)
        parser.add_argument(
            stage.flag, default=str(default), help=f"JSON of {stage.step} (default: %(default)s)"
        )
    parser.add_argument("--python", default=sys.executable, help="interpreter of the steps")
    parser.add_argument("--run-id", default=new_run_id(), help="name of this run in all logs")
    args = vars(parser.parse_args(argv))
    for place, stage in enumerate(stages, start=1):
        config = args[stage.flag[2:].replace("-", "_")]
        command = [args["python"], "-m", RUNNER, stage.step, "--config", config, "--run-id", args["run_id"]]
        print(f"[{place}/{len(stages)}] {shlex.join(command)}", flush=True)
        code = subprocess.run(command, check=False).returncode
        if code:
            left = ", ".join(s.step for s in stages[place:])
            told = f"; not run: {left}" if left else ""
            print(f"error: {stage.step} failed with exit code {code}{told}", file=sys.stderr)
            return code if code > 0 else 1
    return 0
