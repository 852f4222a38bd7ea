"""Shared by tests that run the trainer: rows of the tiny world, a recipe over them, a run and its logs."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from tiny_world import MM

ROOT = Path(__file__).resolve().parents[1]
STEPS = 10
"""Of the recipe in tests/train/conftest.py."""


def video_rows(tiny: Path, count: int) -> list[dict]:
    """Videos with dense captions; their paths start at `tiny`/data."""
    return [json.loads(line) for line in (tiny / "data/captions.jsonl").read_text().splitlines()[:count]]


def text_rows(tiny: Path, count: int) -> list[dict]:
    """Conversations without media."""
    return [json.loads(line) for line in (tiny / "data/texts.jsonl").read_text().splitlines()[:count]]


def write_recipe(
    tiny: Path, folder: Path, rows: list[dict], *, media_root: Path | None = None, **shared
) -> Path:
    """A recipe of all three stages over `rows`; keyword arguments are settings that they share.

    The order of samples follows from the text of the rows. Paths that start at `media_root` (`tiny`/data
    where none is given) and not at the machine's root make it the same wherever the tests run.
    """
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"path": str(folder / "rows.jsonl"), "media_root": str(media_root or tiny / "data")}
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"datasets": [entry]}))
    settings = {
        "model_name_or_path": str(tiny / "qwen2"),
        "vision_tower": str(tiny / "siglip"),
        "data_path": str(folder / "mixture.yaml"),
        "version": "plain",
        "video_num_frames": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        **shared,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"mm": MM, "shared": settings, "stage1": {}, "stage2": {}, "stage3": {}}))
    return path


def command(recipe, out, processes: int, *flags, stage="stage3", entry="train") -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = launcher if processes > 1 else []
    module = ["-m", f"quicksviewer.train.{entry}", "--recipe", str(recipe), "--stage", stage]
    return [sys.executable, *launcher, *module, "--output_dir", str(out), *flags]


def logs_of(out: Path) -> list[dict]:
    """The log entries of a finished run's steps."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def run(recipe, out, processes: int, *flags, **kwargs) -> list[dict]:
    """The logs of a run's steps. Fails with the run's output when it fails."""
    words = command(recipe, out, processes, *flags, **kwargs)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return logs_of(out)
