"""One-click scripts: the order of their steps, the same run for all, and nothing after a step that fails."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from quicksviewer.qwen_vl_finetune.pipelines import command, steps
from quicksviewer.qwen_vl_finetune.pipelines.experiment import EXPERIMENTS, RUNNER, main

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = {
    "modular-heads": "task1_modular_lora/run_subtask_vit_head_experiment.py",
    "modular-full": "task1_modular_lora/run_subtask_full_model_experiment.py",
    "lm": "task2_lm_lora/run_task2_experiment.py",
    "hybrid": "task3_hybrid_lora/run_task3_experiment.py",
}
INTERPRETER = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *" {failing} "*) exit {code};; esac
"""


def fake_python(folder: Path, failing: str = "nothing", code: int = 0) -> Path:
    """An interpreter that writes down what it is called with, and fails at one step."""
    python = folder / "python"
    python.write_text(INTERPRETER.format(log=folder / "calls.txt", failing=failing, code=code))
    python.chmod(0o755)
    return python


def calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().splitlines()


def test_the_table_is_that_of_the_scripts():
    assert EXPERIMENTS.keys() == SCRIPTS.keys()
    assert {stage.step for stages in EXPERIMENTS.values() for stage in stages} == set(steps.STEPS)
    assert {step for words in command.TASKS.values() for step in words} == set(steps.STEPS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_steps_run_in_their_order_and_share_a_run(name, tmp_path, monkeypatch):
    script = ROOT / "compat" / "Qwen_code" / SCRIPTS[name]
    monkeypatch.setattr(sys, "argv", [str(script), "--python", str(fake_python(tmp_path))])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    expected = [
        f"-m {RUNNER} {stage.step} --config {script.parent / stage.file} --run-id"
        for stage in EXPERIMENTS[name]
    ]
    assert [call.rpartition(" ")[0] for call in calls(tmp_path)] == expected
    assert len({call.rpartition(" ")[2] for call in calls(tmp_path)}) == 1
    assert all((script.parent / stage.file).is_file() for stage in EXPERIMENTS[name])


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name in SCRIPTS for place in range(len(EXPERIMENTS[name]))]
)
def test_a_failing_step_is_the_last(name, place, tmp_path, capfd):
    failing = EXPERIMENTS[name][place].step
    assert main(name, None, ["--python", str(fake_python(tmp_path, failing, 7))]) == 7
    done = [line.split()[2] for line in calls(tmp_path)]
    assert done == [stage.step for stage in EXPERIMENTS[name][: place + 1]]
    told = capfd.readouterr().err
    assert f"error: {failing} failed with exit code 7" in told
    assert all(stage.step in told for stage in EXPERIMENTS[name][place + 1 :])


def test_a_script_as_a_process_fails_as_its_step_does(tmp_path):
    """With the real interpreter: the first step finds no data, the second is not begun."""
    script = ROOT / "compat" / "Qwen_code" / SCRIPTS["lm"]
    config = tmp_path / "map.json"
    config.write_text(steps.shipped("lm-map").read_text().replace("/root/autodl-tmp", str(tmp_path)))
    done = subprocess.run(
        [sys.executable, str(script), "--map-config", str(config)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 1
    assert "train_idx.json" in done.stderr and "not run: lm-train, lm-infer" in done.stderr
    assert "[2/3]" not in done.stdout


def test_a_step_that_is_killed_fails_the_experiment(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    assert main("hybrid", None, ["--python", str(python)]) == 1
