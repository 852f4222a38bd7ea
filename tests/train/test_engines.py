"""One process, ZeRO-2 and ZeRO-3 follow the same curve; ranks with different media do not wait for each
other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """A recipe of ten steps over captions and texts, without noise: the same on any number of ranks.

    Eight rows: the last step of an epoch is full, so that no rank is given rows twice to make it so.
    """
    folder = tmp_path_factory.mktemp("engines")
    rows = [json.loads(line) for line in (tiny / "data/captions.jsonl").read_text().splitlines()[:4]]
    rows = [{**row, "video": str(tiny / "data" / row["video"])} for row in rows]
    rows += [json.loads(line) for line in (tiny / "data/texts.jsonl").read_text().splitlines()]
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "model_name_or_path": str(tiny / "qwen2"),
        "vision_tower": str(tiny / "siglip"),
        "data_path": str(folder / "mixed.jsonl"),
        "version": "plain",
        "video_num_frames": 8,
        "max_steps": STEPS,
        "learning_rate": 2.0e-3,
        "noise_start": 0.0,
        "noise_end": 0.0,
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


def command(recipe, out, processes, *flags, stage="stage3"):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = launcher if processes > 1 else []
    module = ["-m", "quicksviewer.train.train", "--recipe", str(recipe), "--stage", stage]
    return [sys.executable, *launcher, *module, "--output_dir", str(out), *flags]


def run(recipe, out, processes, *flags, **kwargs) -> list[dict]:
    """The logs of a run's steps. Fails with the run's output when it fails."""
    words = command(recipe, out, processes, *flags, **kwargs)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def single(recipe, tmp_path_factory):
    return run(recipe, tmp_path_factory.mktemp("single") / "out", 1, "--per_device_train_batch_size", "4")


@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_two_ranks_under_zero_follow_the_single_process(recipe, single, tmp_path, zero):
    flags = ["--per_device_train_batch_size", "2", "--deepspeed", str(ROOT / f"{zero}.json")]
    logs = run(recipe, tmp_path / "out", 2, *flags)
    assert len(logs) == len(single) == STEPS
    for ours, reference in zip(logs, single, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=2e-4)
        assert ours["loss_tokens"] == pytest.approx(reference["loss_tokens"], rel=2e-4)
        # a step of texts alone has no cubes, on any number of ranks
        assert ours.get("frames_per_cube") == pytest.approx(reference.get("frames_per_cube"))
        assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=2e-3)
    assert single[-1]["loss"] < 0.8 * single[0]["loss"]


def test_accumulation_changes_nothing(recipe, single, tmp_path):
    flags = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4"]
    for ours, reference in zip(run(recipe, tmp_path / "out", 1, *flags), single, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=2e-4)


@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_ranks_with_different_media_train_as_one_process(recipe, tmp_path, zero):
    """One row a rank, videos and texts in random order: most steps are mixed."""
    alone = run(recipe, tmp_path / "alone", 1, "--per_device_train_batch_size", "2", stage="stage2")
    flags = ["--per_device_train_batch_size", "1", "--deepspeed", str(ROOT / f"{zero}.json")]
    logs = run(recipe, tmp_path / "out", 2, *flags, stage="stage2")
    assert len(logs) == STEPS
    for ours, reference in zip(logs, alone, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=2e-4)


def test_a_resumed_run_continues_the_curve(recipe, single, tmp_path):
    out = tmp_path / "out"
    flags = ["--per_device_train_batch_size", "4", "--save_strategy", "steps", "--save_steps", "5"]
    run(recipe, out, 1, *flags)
    for path in ("checkpoint-10", "COMPLETE"):
        subprocess.run(["rm", "-r", str(out / path)], check=True)
    logs = run(recipe, out, 1, *flags, "--resume_from_checkpoint", "last")
    for ours, reference in zip(logs, single, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-5)


def test_a_lora_run_leaves_a_checkpoint_that_chat_can_load(recipe, tmp_path):
    from quicksviewer.model.builder import load_pretrained_model

    out = tmp_path / "out"
    flags = [
        "--lora_enable",
        "True",
        "--lora_r",
        "4",
        "--max_steps",
        "3",
        "--per_device_train_batch_size",
        "2",
    ]
    logs = run(recipe, out, 1, *flags)
    assert len(logs) == 3
    report = {row["part"]: row for row in json.loads((out / "trainable.json").read_text())}
    assert 0 < report["llm"]["trainable"] < report["llm"]["parameters"]
    assert not (out / "training_args.bin").exists()
    assert load_pretrained_model(str(out)).processor.template == "plain"


def test_a_lora_run_resumes_with_everything_it_trained(recipe, tmp_path):
    flags = ["--lora_enable", "True", "--lora_dropout", "0", "--max_steps", "6"]
    flags += ["--per_device_train_batch_size", "2", "--save_strategy", "steps", "--save_steps", "3"]
    calm = run(recipe, tmp_path / "out", 1, *flags)
    for path in ("checkpoint-6", "COMPLETE"):
        subprocess.run(["rm", "-r", str(tmp_path / "out" / path)], check=True)
    resumed = run(recipe, tmp_path / "out", 1, *flags, "--resume_from_checkpoint", "last")
    for ours, reference in zip(resumed, calm, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert ours["loss_tokens"] == pytest.approx(reference["loss_tokens"], rel=1e-5)


def test_sigterm_ends_a_run_with_a_checkpoint_and_its_own_code(recipe, tmp_path):
    out = tmp_path / "out"
    words = command(recipe, out, 1, "--per_device_train_batch_size", "1", "--max_steps", "100000")
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
    for line in process.stdout:
        if "'loss'" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert list(out.glob("checkpoint-*/trainer_state.json")) and not (out / "COMPLETE").exists()
