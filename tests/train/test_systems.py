"""Another kind of model under the same trainer: the same steps however they are cut up, resumed or spread."""

import json
import shutil
import signal
import subprocess

import pytest
import torch
import yaml
from picture_world import make_world
from safetensors.torch import load_file
from tiny_runs import ROOT, command, logs_of

from quicksviewer.data.easy_vqa import save_processor
from quicksviewer.train import train, train_hybrid
from quicksviewer.train.args import parse_args
from quicksviewer.train.systems import SYSTEMS, system_named


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures, a checkpoint, a pipeline's YAML over them and a recipe of four steps of eight rows."""
    root = make_world(tmp_path_factory.mktemp("systems") / "world")
    pipeline = {
        "task_type": "vqa",
        "data_paths": {"train": str(root / "pictures/rows.jsonl")},
        "tokenizer": {"name": str(root / "processor")},
        "logging": {"log_statistics": False},
    }
    (root / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    rows = [json.loads(line) for line in (root / "pictures/rows.jsonl").read_text().splitlines()]
    save_processor(root / "processor", [row[key] for row in rows for key in ("question", "answer")])
    shared = dict(
        model_name_or_path=str(root / "blip"),
        data_path=str(root / "pipeline.yaml"),
        use_cpu=True,
        max_steps=4,
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=3,
    )
    recipe = {"system": "blip_vqa", "shared": shared, "full": {}, "text": {}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture
def run(world, tmp_path):
    """Trains in this process and gives the output folder; signals are handled as before afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def start(name: str, *flags):
        out = tmp_path / name
        assert train.main(["--recipe", str(world / "recipe.yaml"), "--output_dir", str(out), *flags]) == 0
        return out

    yield start
    for number, handler in before.items():
        signal.signal(number, handler)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


ALWAYS_FROZEN = {"minimind": {"vision_tower"}}


@pytest.mark.parametrize("name", SYSTEMS)
def test_stages_of_every_system_name_its_parts(name):
    system = system_named(name)
    assert system.stages and all(set(parts) <= set(system.parts) for parts in system.stages.values())
    learning = {part for parts in system.stages.values() for part in parts}
    assert learning == set(system.parts) - ALWAYS_FROZEN.get(name, set())


def test_a_step_is_the_same_however_it_is_cut_up(run, world, tmp_path):
    """Answers differ in length, so that micro-batches have different numbers of targets. Plain SGD: AdamW
    makes whole steps of what rounding leaves of gradients that are zero."""
    sgd, rows = ["--optim", "sgd", "--learning_rate", "0.05"], "--per_device_train_batch_size"
    whole = run("whole", *sgd)
    cut = run("cut", *sgd, rows, "2", "--gradient_accumulation_steps", "4")
    words = command(world / "recipe.yaml", tmp_path / "spread", 2, *sgd, rows, "4", stage="full")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [entry["loss"] for entry in logs_of(whole)]
    assert len(losses) == 4 and losses[-1] < losses[0]
    for other in (cut, tmp_path / "spread"):
        assert [entry["loss"] for entry in logs_of(other)] == pytest.approx(losses, rel=1e-4)
        for key, tensor in weights(whole).items():
            torch.testing.assert_close(weights(other)[key], tensor, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_ends_bit_for_bit_as_the_calm_one(run, tmp_path):
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    calm = run("calm", *saving)
    (tmp_path / "resumed").mkdir()
    shutil.copytree(calm / "checkpoint-2", tmp_path / "resumed/checkpoint-2")
    resumed = run("resumed", *saving, "--resume_from_checkpoint", "last")
    assert (resumed / "model.safetensors").read_bytes() == (calm / "model.safetensors").read_bytes()
    record = json.loads((calm / "run.json").read_text())
    assert record["system"] == "blip_vqa" and record["stage"] == "full"
    assert not list(calm.rglob("training_args.bin"))


def test_a_stage_moves_its_parts_and_no_other(run, world):
    before, after = weights(world / "blip"), weights(run("text", "--stage", "text"))
    moved = {name.split(".")[0] for name, tensor in after.items() if not tensor.equal(before[name])}
    assert moved == {"text_encoder", "text_decoder"}


def test_a_fresh_model_has_the_recipes_shape_and_the_pipelines_words(run, world):
    values = yaml.safe_load((world / "recipe.yaml").read_text())
    values["shared"].pop("model_name_or_path")
    values["mm"] = {"width": 32, "heads": 2, "vision_layers": 1, "text_layers": 1}
    (world / "fresh.yaml").write_text(yaml.safe_dump(values))
    out = run("fresh", "--recipe", str(world / "fresh.yaml"), "--mm_vision_tower_lr", "5e-4")
    config = json.loads((out / "config.json").read_text())
    assert config["vision_config"]["hidden_size"] == 32 and config["text_config"]["num_hidden_layers"] == 1
    assert config["vision_config"]["image_size"] == 64  # that of the processor
    assert {entry["lr/vision_tower"] / entry["lr/text_decoder"] for entry in logs_of(out)[:1]} == {0.5}
    from quicksviewer.zoo import load_model

    assert len(load_model(out, task="vqa", device="cpu")["tokenizer"]) == config["text_config"]["vocab_size"]


REFUSED = {
    "--pack True": "--pack: not for the system blip_vqa, which heeds --data_path",
    "--lora_enable True --video_fps 2": "--lora_enable, --video_fps: not for the system blip_vqa",
    "--stage stage1": "unknown stage 'stage1'",
    "--model_name_or_path nowhere": "nowhere is no checkpoint folder",
    "--data_path nowhere.yaml": "nowhere.yaml is no YAML file",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_flags_that_the_system_does_not_heed_are_refused(world, flags):
    with pytest.raises(ValueError, match=REFUSED[flags]):
        parse_args(["--recipe", str(world / "recipe.yaml"), "--output_dir", "x", *flags.split()])


CHANGES = {
    "task_type": ("image_captioning", "task_type must be vqa here"),
    "data_paths": ({"train": "nowhere.jsonl"}, "no data at nowhere.jsonl.*quicksviewer.data.easy_vqa"),
    "optimization": ({"use_streaming": True}, "use_streaming and return_raw_image must be off"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_pipelines_that_cannot_be_trained_are_refused(world, tmp_path, key):
    value, message = CHANGES[key]
    plain = yaml.safe_load((world / "pipeline.yaml").read_text())
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(plain | {key: value}))
    flags = [
        "--recipe",
        str(world / "recipe.yaml"),
        "--output_dir",
        "x",
        "--data_path",
        str(tmp_path / "p.yaml"),
    ]
    with pytest.raises(ValueError, match=message):
        parse_args(flags)


def test_unknown_systems_and_teams_are_refused(world, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("system: blip_vaq\nfull: {}\n")
    with pytest.raises(ValueError, match="system: unknown system 'blip_vaq'. Did you mean 'blip_vqa'"):
        parse_args(["--recipe", str(tmp_path / "recipe.yaml")])
    assert train_hybrid.main(["--recipe", str(world / "recipe.yaml"), "--output_dir", str(tmp_path)]) == 2
    assert "blip_vqa cannot share rows among processes" in capsys.readouterr().err
