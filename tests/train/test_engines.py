"""One process, ZeRO-2 and ZeRO-3 follow the same curve; ranks with different media do not wait for each
other."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import ROOT, STEPS, command, run

from quicksviewer.model.builder import OTHER_FILE, load_pretrained_model


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


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_sharded_lora_run_keeps_the_weights_that_are_frozen(recipe, tiny, tmp_path, dtype):
    """transformers leaves them out of what it gathers under ZeRO-3."""
    flags = ["--lora_enable", "True", "--lora_r", "4", "--lora_parts", "llm,resampler", "--max_steps", "1"]
    flags += ["--per_device_train_batch_size", "1", "--deepspeed", str(ROOT / "zero3.json")]
    flags += ["--bf16", "True"] if dtype == "bf16" else []
    run(recipe, tmp_path / "out", 2, *flags, stage="stage1")
    kept = load_file(tmp_path / "out" / OTHER_FILE)
    loaded = load_pretrained_model(str(tmp_path / "out")).model.state_dict()
    tower = load_file(tiny / "siglip/model.safetensors")
    assert "vision_resampler.query" in kept
    assert all(name in loaded for name in kept)
    frozen = {name: tensor for name, tensor in kept.items() if name.startswith("vision_tower.")}
    assert frozen
    for name, tensor in frozen.items():
        (source,) = (tower[key] for key in tower if name.endswith(key.removeprefix("vision_model.")))
        assert torch.equal(tensor, source.to(tensor.dtype)), name


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
