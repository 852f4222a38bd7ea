"""`quicksviewer finetune modular | lm | hybrid`: a pipeline from its first step to its figures.

    quicksviewer finetune modular                    the embedded size: forged pictures and a tiny model
    quicksviewer finetune lm --root /data/forgery    your data/ and model below that folder
    quicksviewer finetune hybrid --config hybrid-train=my.json --config hybrid-eval=mine.json

Without --root and --config all is made below --output and nothing is downloaded.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from quicksviewer.qwen_vl_finetune.pipelines import steps
from quicksviewer.qwen_vl_finetune.pipelines.journal import new_run_id
from quicksviewer.utils.config import save_json
from quicksviewer.utils.registry import lookup

TASKS = {
    "modular": ("modular-train", "modular-eval-heads", "modular-eval-full"),
    "lm": ("lm-map", "lm-train", "lm-infer"),
    "hybrid": ("hybrid-train", "hybrid-eval"),
}
"""Word -> its steps. The hybrid's embedded size begins with the heads of `modular`, where they are."""
TABLE = ("auroc", "acc", "f1", "head_auroc", "head_acc", "head_f1", "mean_iou", "mean_dice", "heat_of_clean")
PLAIN = dict(torch_dtype="float32")
BLOCKS = [0, 1, 2, 3]
SIZE = 112
FIT = PLAIN | dict(
    amp_dtype="float32", num_workers=0, image_size=SIZE, visual_layers=BLOCKS, lr_lora=1e-3, batch_size=4
)
EMBEDDED: dict[str, dict[str, Any]] = {
    "modular-train": FIT | dict(lora_target_layers=BLOCKS, epochs=3),
    "modular-eval-heads": PLAIN | dict(num_workers=0, visual_layers=None, lora_target_layers=None),
    "modular-eval-full": PLAIN | dict(image_size=None, lora_target_layers=None),
    "lm-map": dict(map_kwargs=dict(batch_size=50, num_proc=1)),
    "lm-train": PLAIN
    | dict(
        image_size=SIZE,
        lora_target_blocks=BLOCKS,
        training_args=dict(
            num_train_epochs=6,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            logging_steps=50,
        ),
    ),
    "lm-infer": PLAIN,
    "hybrid-train": FIT
    | dict(
        epochs=3,
        lora=dict(visual=dict(blocks=BLOCKS), lm=dict(module_patterns=["q_proj", "v_proj"])),
    ),
    "hybrid-eval": PLAIN | dict(num_workers=0),
}
"""Step -> what the embedded size says otherwise than the shipped configuration."""
PICTURES = dict(train=512, val=32, test=64, size=SIZE)
HEADS_OF_TASK_1 = "task1_modular_lora/training/modular_vit_lora"


def modular(argv: list[str]) -> int:
    return main("modular", argv)


def lm(argv: list[str]) -> int:
    return main("lm", argv)


def hybrid(argv: list[str]) -> int:
    return main("hybrid", argv)


def main(task: str, argv: list[str]) -> int:
    """Exit code: 0 done, 1 a step failed, 2 wrong usage."""
    args = _parser(task).parse_args(argv)
    from quicksviewer.utils.media import MediaError

    try:
        configs = _configs(task, args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run_id, results = new_run_id(), {}
    for place, (step, (path, overrides)) in enumerate(configs.items(), start=1):
        print(f"[{place}/{len(configs)}] {step}: {steps.STEPS[step].what}", flush=True)
        try:
            results[step] = steps.run(step, path, run_id, overrides)
        except (ValueError, OSError, MediaError, ModuleNotFoundError) as error:
            print(f"error: {step}: {error}", file=sys.stderr)
            return 1
    _show(results)
    return 0


def _parser(task: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"quicksviewer finetune {task}", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--root", type=Path, help="folder with data/ and the model; outputs go below it")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="STEP=FILE",
        help=f"JSON of a step ({', '.join(TASKS[task])}) in place of the shipped one",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/forgeries"), help="of the embedded size (%(default)s)"
    )
    return parser


def _configs(task: str, args: argparse.Namespace) -> dict[str, tuple[Path, dict]]:
    """Step -> its file and what is said on top of it. ValueError for a step that the task does not have."""
    given = {}
    for text in args.config:
        step, equals, path = text.partition("=")
        if not equals:
            raise ValueError(f"--config is written STEP=FILE, got {text!r}")
        lookup(dict.fromkeys(TASKS[task]), step, f"step of {task}")
        given[step] = Path(path)
    paths = {step: given.get(step, steps.shipped(step)) for step in TASKS[task]}
    if args.root:
        root = dict(working_dir=str(args.root), output_root=str(args.root))
        return {step: (path, root) for step, path in paths.items()}
    if given:
        return {step: (path, {}) for step, path in paths.items()}
    return {step: (path, embedded(step, args.output)) for step, path in paths.items()}


def embedded(step: str, root: Path) -> dict[str, Any]:
    """What is said on top of a shipped configuration; data and model are made below `root` if they are not
    there."""
    make_embedded(root)
    model = "model_path" if step.startswith("modular") else "base_model_path"
    said = EMBEDDED[step] | {"working_dir": str(root), "output_root": str(root), model: "model"}
    if step == "hybrid-train" and (root / HEADS_OF_TASK_1).is_dir():
        said["init_head_checkpoint"] = HEADS_OF_TASK_1
    return said


def make_embedded(root: Path) -> None:
    """Forged pictures and the tiny model below `root`, unless they were made by the same settings."""
    from quicksviewer.qwen_vl_finetune.pipelines.tiny_base import BaseConfig, make_base
    from quicksviewer.synthetic.forgeries import AREA, GRAIN, STRENGTH, ForgerySpec, write_forgeries

    stamp = root / "data" / "made.json"
    wanted = PICTURES | {"area": list(AREA), "pattern": [STRENGTH, GRAIN]}
    if not stamp.is_file() or json.loads(stamp.read_text()) != wanted:
        print(f"making forged pictures in {root / 'data'}", flush=True)
        write_forgeries(root / "data", ForgerySpec(**PICTURES))
        save_json(stamp, wanted)
    make_base(root / "model", BaseConfig(size=SIZE))


def _show(results: dict[str, dict[str, Any]]) -> None:
    """Figures of the measuring steps under each other, and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    measured = {step: figures for step, figures in results.items() if "auroc" in figures}
    table = Table()
    for column in ("figure", *measured):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name in TABLE:
        if any(name in figures for figures in measured.values()):
            table.add_row(name, *(_cell(figures.get(name)) for figures in measured.values()))
    Console(markup=False, highlight=False).print(table)
    for figures in results.values():
        if "folder" in figures:
            print(f"weights: {figures['folder']}")


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return "none" if math.isnan(value) else f"{value:.3f}"
