"""A run that is killed, or moved to another number of processes, ends where the calm one ends."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT, run

HERE = Path(__file__).parent
FLAGS = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--per_device_train_batch_size"]


def instants() -> list[str]:
    """The names in killed_run.py, read without importing what it imports."""
    tree = ast.parse((HERE / "killed_run.py").read_text())
    table = next(n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "INSTANTS")
    return [key.value for key in table.value.keys]


@pytest.fixture(scope="module")
def ended(recipe, tmp_path_factory):
    """Output folders of the calm run and of the killed and resumed ones, and by instant their exit codes."""
    folder = tmp_path_factory.mktemp("killed")

    def argv(name, *flags):
        head = ["--recipe", str(recipe), "--stage", "stage3", "--output_dir", str(folder / name)]
        return [*head, *FLAGS, "4", *flags]

    jobs = [(argv("calm"), None)]
    for name in instants():
        jobs += [(argv(name), name), (argv(name, "--resume_from_checkpoint", "last"), None)]
    words = [sys.executable, str(HERE / "killed_run.py"), json.dumps(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes[0] == 0, done.stderr[-3000:]
    return folder, dict(zip(instants(), zip(codes[1::2], codes[2::2], strict=True), strict=True))


@pytest.mark.parametrize("instant", instants())
def test_a_killed_run_ends_bit_for_bit_as_the_calm_one(ended, instant):
    folder, codes = ended
    assert codes[instant] == (-9, 0)
    calm, resumed = folder / "calm", folder / instant
    assert (resumed / "model.safetensors").read_bytes() == (calm / "model.safetensors").read_bytes()
    state = "checkpoint-6/data_state.json"
    assert json.loads((resumed / state).read_text()) == json.loads((calm / state).read_text())
    assert not (resumed / "unfinished").exists()


def test_a_damaged_checkpoint_is_passed_over_and_a_named_one_refused(ended, recipe, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(ended[0] / "calm", out)
    weights = out / "checkpoint-6/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (out / "COMPLETE").unlink()
    words = [sys.executable, "-m", "quicksviewer.train.train", "--recipe", str(recipe), "--stage", "stage3"]
    words += ["--output_dir", str(out), *FLAGS, "4", "--resume_from_checkpoint"]
    refused = subprocess.run([*words, str(weights.parent)], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "model.safetensors has" in refused.stderr, refused.stderr[-2000:]
    accepted = subprocess.run([*words, "last"], cwd=ROOT, capture_output=True, text=True)
    assert accepted.returncode == 0 and "passed over" in accepted.stdout + accepted.stderr
    assert (out / "model.safetensors").read_bytes() == (ended[0] / "calm/model.safetensors").read_bytes()


def test_other_data_are_refused(ended, recipe, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(ended[0] / "calm", out)
    words = [sys.executable, "-m", "quicksviewer.train.train", "--recipe", str(recipe), "--stage", "stage3"]
    words += ["--output_dir", str(out), *FLAGS, "4", "--seed", "4", "--resume_from_checkpoint", "last"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "seed was 3, is 4 now" in done.stderr, done.stderr[-2000:]


def resume_from(source: Path, step: int, out: Path) -> Path:
    """An output folder that knows one checkpoint of another run."""
    out.mkdir()
    shutil.copytree(source / f"checkpoint-{step}", out / f"checkpoint-{step}")
    return out


ENGINES = {"no DeepSpeed": [], "zero2": ["--deepspeed", "zero2.json"], "zero3": ["--deepspeed", "zero3.json"]}


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_then_one_then_two_walk_the_same_way(ended, recipe, tmp_path, engine):
    flags = [*FLAGS[:-1], *ENGINES[engine]]
    rows, last = "--per_device_train_batch_size", ("--resume_from_checkpoint", "last")
    calm = run(recipe, tmp_path / "calm", 2, *flags, rows, "2")
    alone = resume_from(tmp_path / "calm", 2, tmp_path / "alone")
    run(recipe, alone, 1, *flags, rows, "4", *last)
    again = resume_from(alone, 4, tmp_path / "again")
    moved = run(recipe, again, 2, *flags, rows, "2", *last)
    for ours, reference in zip(moved, calm, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=2e-4)
    states = [
        json.loads((out / "checkpoint-6/data_state.json").read_text()) for out in (tmp_path / "calm", again)
    ]
    assert states[0] == states[1] and states[0]["position"] == 24
