"""Real runs through the trainer: a team follows the single process under DDP, ZeRO-2 and ZeRO-3.

The optimizer is SGD: AdamW would hide gradients that are too large by a factor.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from quicksviewer.train import train, train_hybrid

ROOT = Path(__file__).resolve().parents[3]
STEPS = 4


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """Two videos and two texts, with the gate's noise: what a team draws has to be what one process draws."""
    folder = tmp_path_factory.mktemp("hybrid")
    rows = [json.loads(line) for line in (tiny / "data/captions.jsonl").read_text().splitlines()[:2]]
    rows = [{**row, "video": str(tiny / "data" / row["video"])} for row in rows]
    rows += [json.loads(line) for line in (tiny / "data/texts.jsonl").read_text().splitlines()[:2]]
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "model_name_or_path": str(tiny / "qwen2"),
        "vision_tower": str(tiny / "siglip"),
        "data_path": str(folder / "mixed.jsonl"),
        "version": "plain",
        "video_num_frames": 8,
        "max_steps": STEPS,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "cubing_aux_weight": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    mm = {
        "cubing": {"frames_per_cube": 3},
        "resampler": {"queries": 4, "head_width": 32},
        "layout": {"time_digits": 2, "time_decimals": 0},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"mm": mm, "shared": shared, "stage1": {}, "stage2": {}, "stage3": {}}))
    return path


def deepspeed(folder: Path, stage: int) -> list[str]:
    """The project's own configurations, with leave to use the run's SGD."""
    settings = json.loads((ROOT / ("zero3.json" if stage == 3 else "zero2.json")).read_text())
    settings["zero_optimization"]["stage"] = stage
    path = folder / "zero.json"
    path.write_text(json.dumps({**settings, "zero_allow_untested_optimizer": True}))
    return ["--deepspeed", str(path)]


def run(recipe, out, entry: str, processes: int, *flags: str) -> list[dict]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    module = ["-m", f"quicksviewer.train.{entry}", "--recipe", str(recipe), "--stage", "stage3"]
    words = [sys.executable, *(launcher if processes > 1 else []), *module, "--output_dir", str(out), *flags]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


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
