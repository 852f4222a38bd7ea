"""MiniMindVLM under the project's trainer: what each stage moves, what the logs say, what came of it."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import ROOT, logs_of

from quicksviewer.eval.describe import held_out
from quicksviewer.eval.describe import main as describe
from quicksviewer.minimind import MiniMindForCausalLM, MiniMindVLM
from quicksviewer.minimind.config import PRESETS
from quicksviewer.minimind.processor import MiniMindProcessor
from quicksviewer.minimind.telemetry import main as draw
from quicksviewer.minimind.telemetry import shares_in
from quicksviewer.synthetic.cli import read_config
from quicksviewer.synthetic.corpus import SPLITS
from quicksviewer.synthetic.world import COLOURS, SHAPES
from quicksviewer.train import train
from quicksviewer.train.args import parse_args

STEPS = {"pretrain": 2, "sft": 3}


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """Both stages over the pictures of the tiny world, of a language model with four experts."""
    root = tmp_path_factory.mktemp("system")
    rows = {"datasets": [{"path": str(tiny / "data/images.jsonl"), "media_root": str(tiny / "data")}]}
    (root / "rows.yaml").write_text(yaml.safe_dump(rows))
    shared = dict(
        vision_tower=str(tiny / "siglip"),
        data_path=str(root / "rows.yaml"),
        version="plain",
        use_cpu=True,
        per_device_train_batch_size=6,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=3,
    )
    stages = {name: {"max_steps": count, "output_dir": str(root / name)} for name, count in STEPS.items()}
    stages["pretrain"]["model_name_or_path"] = str(tiny / "minimind")
    stages["sft"]["model_name_or_path"] = str(root / "pretrain")
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump({"system": "minimind", "shared": shared, **stages}))
    return path


def run(recipe, stage: str, *flags: str) -> int:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return train.main(["--recipe", str(recipe), "--stage", stage, *flags])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def trained(recipe):
    """The folder of both stages, run one after the other."""
    for stage in STEPS:
        assert run(recipe, stage) == 0
    return recipe.parent


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(before: dict, after: dict) -> set[str]:
    assert set(before) <= set(after)
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_each_stage_moves_its_parts(tiny, trained):
    first, second = weights(trained / "pretrain"), weights(trained / "sft")
    assert moved(weights(tiny / "minimind"), first) == set()
    assert moved(first, second) == {"model", "vision_proj"}
    tower = {name: tensor for name, tensor in second.items() if name.startswith("vision_encoder.")}
    assert tower and all(torch.equal(tensor, first[name]) for name, tensor in tower.items())
    losses = [entry["loss"] for entry in (*logs_of(trained / "pretrain"), *logs_of(trained / "sft"))]
    assert losses[-1] < losses[0] and len(losses) == sum(STEPS.values())


def test_the_tower_is_the_one_that_was_given(tiny, trained):
    given, ours = weights(tiny / "siglip"), weights(trained / "sft")
    strangers = [
        name for name in given if not any(key.endswith(name.removeprefix("vision_model.")) for key in ours)
    ]
    assert not strangers
    model = MiniMindVLM.from_pretrained(trained / "sft")
    tower, _ = MiniMindVLM.get_vision_model(str(tiny / "siglip"))
    for one, other in zip(model.vision_encoder.parameters(), tower.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_logs_say_who_was_busy(trained, capsys):
    entries = logs_of(trained / "sft")
    for entry in entries:
        shares_LE = shares_in(entry)
        assert shares_LE.shape == (2, 4)
        assert shares_LE.sum(1).tolist() == pytest.approx([1, 1])
        for layer, shares in enumerate(shares_LE):
            assert entry[f"experts/layer_{layer}/max_over_mean"] == pytest.approx(float(shares.max() * 4))
            assert entry[f"experts/layer_{layer}/dead"] == int((shares == 0).sum())
        assert entry["experts/max_over_mean"] == pytest.approx(float(shares_LE.max() * 4))
        assert entry["loss_router"] == pytest.approx(2 * 0.01, rel=0.2)  # two layers, each about its alpha
    assert draw([str(trained / "sft")]) == 0
    assert (trained / "sft/experts.png").stat().st_size > 5000


def test_a_step_is_the_same_however_it_is_cut_up(recipe, trained, tmp_path):
    """The same three steps of six rows, two at a time."""
    flags = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3"]
    assert run(recipe, "sft", "--output_dir", str(tmp_path / "cut"), "--max_steps", "1", *flags) == 0
    (cut,), whole = logs_of(tmp_path / "cut"), logs_of(trained / "sft")[0]
    for key in ("loss", "loss_router", "grad_norm"):
        assert cut[key] == pytest.approx(whole[key], rel=1e-4), key


def test_the_checkpoint_asks_and_answers_by_itself(trained):
    """What the folder holds is enough, and it is what the zoo opens, too."""
    model, processor = (kind.from_pretrained(trained / "sft") for kind in (MiniMindVLM, MiniMindProcessor))
    assert model.params.image_ids == [processor.image_id] * processor.patches
    record = json.loads((trained / "sft/run.json").read_text())
    assert record["system"] == "minimind" and record["stage"] == "sft"
    from quicksviewer.zoo import load_model

    loaded = load_model(trained / "sft", device="cpu")
    assert isinstance(loaded["model"], MiniMindVLM)


# --- describe ---


def test_descriptions_are_counted(trained, tmp_path, capsys):
    out = tmp_path / "found.json"
    words = ["--model-path", str(trained / "sft"), "--pictures", "40", "--output", str(out)]
    assert describe(words) == 0
    found = json.loads(out.read_text())
    assert found["pictures"] == len(found["records"]) == 40
    for part in ("colour", "shape", "both"):
        right = sum(record[part] for record in found["records"]) / 40
        assert found["accuracy"][part]["accuracy"] == pytest.approx(right)
        assert 0 < found["chance"][part] < 0.6
    for record in found["records"]:
        expected, answer = record["expected"], record["answer"].split()
        assert record["both"] == (answer[:2] == expected)
    assert capsys.readouterr().out.splitlines()[-1].startswith("accuracy=")
    first = out.read_bytes()
    assert describe(words) == 0 and out.read_bytes() == first


def test_pictures_are_of_worlds_that_nobody_was_shown():
    """Seeds of held-out worlds and of the training pictures' worlds do not meet."""
    assert SPLITS["text"] - SPLITS["held_out"] == 10**6
    pictures = held_out(30)
    assert [p[1:] for p in held_out(10, first=20)] == [p[1:] for p in pictures[20:]]
    for picture, colour, shape in pictures:
        assert shape in SHAPES and COLOURS[colour] in {tuple(c) for _, c in picture.getcolors(10**4)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--pictures", "0"], "--pictures is at least 1"), ([], "no minimind_processor.json")],
)
def test_wrong_usage_is_told(tmp_path, capsys, flags, message):
    assert describe(["--model-path", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


# --- the recipe and what it refuses ---


def test_the_shipped_recipe_is_the_preset_tiny():
    shape = read_config("minimind").lm_shape
    assert {key: shape[key] for key in PRESETS["tiny"]} == PRESETS["tiny"]
    assert set(shape) - set(PRESETS["tiny"]) == {
        "num_key_value_heads"
    }  # which the preset leaves to the heads
    assert shape["num_key_value_heads"] == PRESETS["tiny"]["num_attention_heads"]


def test_a_command_makes_a_language_model_with_experts(tmp_path):
    """In a process of its own, in which nobody has told transformers of our families."""
    lm_shape = dict(
        hidden_size=32, num_hidden_layers=1, use_moe=True, n_routed_experts=2, aux_loss_alpha=0.01
    )
    made = dict(folder=str(tmp_path / "world"), family="minimind", lm_shape=lm_shape)
    made |= {"pretrain": {"lm_steps": 1, "lm_batch": 2}, "world": {"max_seconds": 12, "max_events": 4}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"system": "minimind", "synthetic": made}))
    words = ["data", "make", "--recipe", str(tmp_path / "recipe.yaml"), "--only", "lm"]
    done = subprocess.run(
        [sys.executable, "-m", "quicksviewer", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = MiniMindForCausalLM.from_pretrained(tmp_path / "world/minimind")
    assert model.config.n_routed_experts == 2 and "STAMP" in os.listdir(tmp_path / "world/minimind")


REFUSED = {
    "--pack True": "--pack: not for the system minimind",
    "--mm_cubing uniform": "--mm_cubing: not for the system minimind",
    "--stage stage1": "unknown stage 'stage1'",
    "--model_name_or_path nowhere": "--model_name_or_path +nowhere",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_flags_that_it_does_not_heed_are_refused(recipe, flags):
    with pytest.raises(ValueError, match=REFUSED[flags]):
        parse_args(["--recipe", str(recipe), *flags.split()])


def test_a_checkpoint_of_another_family_is_refused(recipe, tiny):
    with pytest.raises(ValueError, match="holds a qwen2, expected a minimind"):
        parse_args(["--recipe", str(recipe), "--model_name_or_path", str(tiny / "qwen2")])


def test_a_structure_is_refused(recipe, tmp_path, capsys):
    values = yaml.safe_load(recipe.read_text()) | {"mm": {"cubing": {}}}
    (tmp_path / "mm.yaml").write_text(yaml.safe_dump(values))
    assert run(tmp_path / "mm.yaml", "pretrain") == 2
    assert "section mm of a recipe is for the video model" in capsys.readouterr().err
