"""From the start of the interpreter to the end of the first training step, against a plain script (P20).

    python benchmarks/startup.py [--repeats 5]

Ours is `quicksviewer.train.train` on a tiny model and videos; the other a minimal script that loads the same
language model and tower with transformers and takes one step of its Trainer on text. Both run in fresh
processes, in turns, until the first loss is logged. The targets are 20 s, and half of the script's time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from common import ratio_row
from toy_world import make_data, make_model

TARGET_SECONDS = 20.0
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel, Trainer, TrainingArguments

lm, tower, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(lm)
model, vision = AutoModelForCausalLM.from_pretrained(lm), SiglipVisionModel.from_pretrained(tower)
ids = tokenizer("What happens when?")["input_ids"]
rows = [{"input_ids": ids, "labels": ids}] * 64
args = TrainingArguments(
    out, max_steps=1000, logging_steps=1, disable_tqdm=True, use_cpu=True, report_to="none",
    save_strategy="no", per_device_train_batch_size=4,
)
collate = lambda rows: {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
Trainer(model=model, args=args, train_dataset=rows, data_collator=collate).train()
"""


def first_step_seconds(command: list[str]) -> float:
    """Wall time of a fresh process until it logs its first step."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in process.stdout:
            if "'loss'" in line:
                return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
    raise SystemExit(f"the run ended before its first step: {' '.join(command)}")


def write_recipe(root: Path) -> Path:
    """A recipe of the models and data under a folder."""
    make_model(root / "models", {}, {})
    make_data(root / "data")
    (root / "mix.yaml").write_text("datasets:\n  - {name: captions}\n")
    shared = dict(
        model_name_or_path=str(root / "models/lm"),
        vision_tower=str(root / "models/tower"),
        data_path=str(root / "mix.yaml"),
        data_registry=str(root / "data/registry.yaml"),
        version="plain",
        per_device_train_batch_size=4,
        max_steps=1000,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    mm = {"resampler": {"queries": 4, "head_width": 32}}
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump({"mm": mm, "shared": shared, "stage1": {}}))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        recipe = write_recipe(root)
        ours = [
            sys.executable,
            "-m",
            "quicksviewer.train.train",
            "--recipe",
            str(recipe),
            "--stage",
            "stage1",
        ]
        models = [str(root / "models/lm"), str(root / "models/tower")]
        sides = {
            "ours": [*ours, "--output_dir", str(root / "ours")],
            "plain": [sys.executable, "-c", PLAIN, *models, str(root / "plain")],
        }
        rounds = [{name: first_step_seconds(words) for name, words in sides.items()} for _ in range(repeats)]
    times = {name: [seconds[name] for seconds in rounds] for name in sides}
    median = statistics.median(times["ours"])
    out = {"seconds": {name: [round(s, 2) for s in values] for name, values in times.items()}}
    out |= {"median": round(median, 2), "target_s": TARGET_SECONDS, "pass_s": median < TARGET_SECONDS}
    print(json.dumps(out | {"against_plain": ratio_row(times["plain"], times["ours"], 2.0)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
