"""Real runs through the trainer: a team follows the single process under DDP, ZeRO-2 and ZeRO-3.

The optimizer is SGD: AdamW would hide gradients that are too large by a factor.
"""

import json
from pathlib import Path

import pytest
import tiny_runs
from tiny_runs import ROOT, text_rows, video_rows, write_recipe

from quicksviewer.train import train, train_hybrid

STEPS = 4


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """Two videos and two texts, with the gate's noise: what a team draws has to be what one process draws."""
    rows = video_rows(tiny, 2) + text_rows(tiny, 2)
    sgd = dict(optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0)
    folder = tmp_path_factory.mktemp("hybrid")
    return write_recipe(tiny, folder, rows, max_steps=STEPS, cubing_aux_weight=0.1, **sgd)


def deepspeed(folder: Path, stage: int) -> list[str]:
    """The project's own configurations, with leave to use the run's SGD."""
    settings = json.loads((ROOT / ("zero3.json" if stage == 3 else "zero2.json")).read_text())
    settings["zero_optimization"]["stage"] = stage
    path = folder / "zero.json"
    path.write_text(json.dumps({**settings, "zero_allow_untested_optimizer": True}))
    return ["--deepspeed", str(path)]


def run(recipe, out, entry: str, processes: int, *flags: str) -> list[dict]:
    return tiny_runs.run(recipe, out, processes, *flags, entry=entry)


@pytest.fixture(scope="module")
def single(recipe, tmp_path_factory):
    """One process that reads what a team reads."""
    out = tmp_path_factory.mktemp("single") / "out"
    return run(recipe, out, "train", 1, "--per_device_train_batch_size", "2")


def check(logs: list[dict], single: list[dict]) -> None:
    assert len(logs) == len(single) == STEPS
    for ours, reference in zip(logs, single, strict=True):
        assert ours.keys() == reference.keys()
        for key in ours.keys() & {"loss", "loss_tokens", "loss_gate", "frames_per_cube", "longest_cube"}:
            assert ours[key] == pytest.approx(reference[key], rel=2e-5), key
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
    assert any("frames_per_cube" in entry for entry in logs)


@pytest.mark.parametrize("zero", [0, pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_a_team_of_two_follows_the_single_process(recipe, single, tmp_path, zero):
    flags = ["--per_device_train_batch_size", "2", *(deepspeed(tmp_path, zero) if zero else [])]
    check(run(recipe, tmp_path / "out", "train_hybrid", 2, *flags), single)


def test_two_teams_that_accumulate_follow_two_processes(recipe, tmp_path):
    """A ring of two in each of two teams, against two ranks without teams: the noise is per data rank."""
    flags = ["--per_device_train_batch_size", "1"]
    wanted = run(recipe, tmp_path / "two", "train", 2, *flags)
    teams = ["--seq_parallel_size", "2", "--seq_parallel_ring_size", "2", *deepspeed(tmp_path, 3)]
    check(run(recipe, tmp_path / "teams", "train_hybrid", 4, *flags, *teams), wanted)


def test_the_plain_entry_refuses_teams(recipe, tmp_path, capsys):
    words = ["--recipe", str(recipe), "--stage", "stage3", "--output_dir", str(tmp_path)]
    assert train.main([*words, "--seq_parallel_size", "2"]) == 2
    assert "train_hybrid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seq_parallel_size", "2"], "1 ranks cannot form teams of 2"),
        (["--seq_parallel_size", "0"], "--seq_parallel_size must be at least 1"),
        (["--seq_parallel_ring_size", "-3"], "--seq_parallel_ring_size must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(recipe, tmp_path, capsys, flags, message):
    words = ["--recipe", str(recipe), "--stage", "stage3", "--output_dir", str(tmp_path)]
    assert train_hybrid.main([*words, *flags]) == 2
    assert message in capsys.readouterr().err
