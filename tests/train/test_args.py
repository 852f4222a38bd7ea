"""Defaults, then the recipe, then flags; and nothing that nobody declared."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from quicksviewer.model.config import MultimodalConfig
from quicksviewer.train.args import parse_args, read_recipe, recipe_system, resolved
from quicksviewer.train.stages import STAGES
from quicksviewer.train.vision_language import BlipShape
from quicksviewer.utils.recipes import RECIPES


@pytest.fixture
def recipe(tiny, tmp_path):
    """Writes a recipe for the tiny checkpoints and returns its path."""

    def write(**changes) -> str:
        sections = {
            "mm": {"cubing": {"frames_per_cube": 3}, "resampler": {"queries": 4, "head_width": 32}},
            "shared": {
                "model_name_or_path": str(tiny / "qwen2"),
                "vision_tower": str(tiny / "siglip"),
                "data_path": f"{tiny}/data/texts.jsonl",
                "output_dir": str(tmp_path / "out"),
                "use_cpu": True,
                "learning_rate": 1.0e-3,
            },
            **{stage: {} for stage in STAGES},
        }
        for section, values in changes.items():
            sections[section] = {**sections.get(section, {}), **values}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(sections))
        return str(path)

    return write


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(recipe):
    path = recipe(stage2={"learning_rate": 5.0e-4})
    assert parse_args(["--recipe", path, "--stage", "stage1"]).training.learning_rate == 1e-3
    assert parse_args(["--recipe", path, "--stage", "stage2"]).training.learning_rate == 5e-4
    flags = ["--recipe", path, "--stage", "stage2", "--learning_rate", "1e-5", "--mm_cubing_lr", "0.1"]
    run = parse_args(flags)
    assert run.training.learning_rate == 1e-5 and run.training.part_rates() == {"cubing": 0.1}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning_rat", "1"], "'learning_rat', which is no argument; did you mean 'learning_rate'"),
        (["--stage", "stage4"], "Unknown stage|unknown stage"),
        (["--recipe", "tinny"], "tiny"),
        (["--model_name_or_path", "nowhere"], "--model_name_or_path +nowhere"),
        (["--data_path", "nowhere.jsonl"], "--data_path +nowhere.jsonl"),
    ],
)
def test_wrong_arguments_say_what_was_meant(recipe, flags, message):
    with pytest.raises(ValueError, match=message):
        parse_args(["--recipe", recipe(), "--stage", "stage1", *flags])


def test_an_unknown_key_or_section_of_a_recipe_is_refused(recipe):
    with pytest.raises(ValueError, match="'warmup_step'.*did you mean 'warmup_steps'"):
        parse_args(["--recipe", recipe(shared={"warmup_step": 3}), "--stage", "stage1"])
    with pytest.raises(ValueError, match="stage9"):
        parse_args(["--recipe", recipe(stage9={"seed": 1}), "--stage", "stage1"])


def test_every_setting_is_recorded_and_no_secret_is(recipe):
    record = resolved(parse_args(["--recipe", recipe(), "--stage", "stage1"]))
    assert record["training"]["learning_rate"] == 1e-3 and record["mm"]["cubing"] == {"frames_per_cube": 3}
    assert not [key for key in record["training"] if key.endswith("_token")]


SHAPE_KEYS = {
    "quicksviewer": {field.name for field in fields(MultimodalConfig)},
    "blip_vqa": {field.name for field in fields(BlipShape)},
    "minimind": set(),  # its structure is that of its checkpoints
}
SHIPPED = [
    (path.stem, stage)
    for path in sorted(Path(RECIPES).glob("*.yaml"))
    for stage in recipe_system(path.stem)[1].stages
]


@pytest.mark.parametrize("name, stage", SHIPPED)
def test_every_shipped_recipe_declares_only_what_there_is(name, stage):
    settings, mm = read_recipe(name, stage)
    with pytest.raises(ValueError) as error:
        flags = ["--output_dir", "x", "--model_name_or_path", "nowhere", "--data_path", "nowhere.yaml"]
        parse_args(["--recipe", name, "--stage", stage, *flags])
    assert "no argument" not in str(error.value) and "nowhere" in str(error.value)
    assert settings["output_dir"] and set(mm) <= SHAPE_KEYS[recipe_system(name)[0]]


def test_the_7b_recipe_without_weights_names_every_missing_path():
    with pytest.raises(ValueError) as error:
        parse_args(["--recipe", "7b", "--stage", "stage1"])
    for words in ("Qwen2.5-7B-Instruct", "siglip-so400m", "data/obelics", "--vision_tower", "--data_path"):
        assert words in str(error.value)
