"""The YAML of a pipeline: every shipped file is read, a typo says what was meant, nonsense is refused."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from quicksviewer.data.pipeline import DataPipeline, PipelineConfig
from quicksviewer.utils.config import build

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "configs/pipeline").glob("*.yaml"))
PLAIN = {"task_type": "vqa", "data_paths": {"train": "rows.jsonl"}}
SECTIONS = [f.name for f in fields(PipelineConfig) if is_dataclass(get_type_hints(PipelineConfig)[f.name])]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_read(path):
    config = PipelineConfig.load(path)
    assert config.data_paths.of("train") and config.data_paths.of("test")


def test_there_is_a_shipped_file_of_every_task():
    from quicksviewer.data.pipeline.tasks import TASKS

    assert {PipelineConfig.load(path).task_type for path in SHIPPED} == set(TASKS)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_typo_in_any_section_says_what_was_meant(section):
    kind = get_type_hints(PipelineConfig)[section]
    name = fields(kind)[0].name
    with pytest.raises(
        ValueError, match=f"{section}: {kind.__name__} has no '{name}s'.*Did you mean '{name}'"
    ):
        build(PipelineConfig, PLAIN | {section: {f"{name}s": 1}}, "p.yaml")


WRONG = [
    ({"task_type": "vqaa"}, "'vqaa' is not a choice. Did you mean 'vqa'"),
    ({"data_paths": {}}, "no split has a path"),
    ({"data_split": {"train_ratio": 0.9}}, "must add up to 1"),
    ({"data_split": {"train_ratio": 1.2, "val_ratio": -0.2, "test_ratio": 0.0}}, "must add up to 1"),
    ({"data_split": {"stratify_by": "a", "group_by": "b"}}, "stratify_by or group_by"),
    ({"data_split": {"stratify_by": "a", "shuffle": False}}, "shuffle must be true"),
    ({"data_split": {"auto_split": True}, "data_paths": {"test": "t.jsonl"}}, "which is not given"),
    ({"balance": {"enabled": True}}, "balance needs a label_field"),
    ({"balance": {"strategy": "smote"}}, "'smote' is not a choice"),
    ({"dataloader": {"batch_size": 0}}, "batch_size must be at least 1"),
    ({"dataloader": {"num_workers": -1}}, "num_workers must be at least 0"),
    ({"dataloader": {"batch_size": "8"}}, "expected int"),
    ({"vqa": {"max_answer_length": 0}}, "max_answer_length must be at least 1"),
    ({"preprocessing": {"text": ["lowercase"]}}, "Did you mean 'lower_case'"),
    ({"preprocessing": {"image": ["gray"]}}, "step for pictures 'gray'. Did you mean 'grey'"),
    ({"bad_rows": {"policy": "quarantine"}}, "a file for it go together"),
    ({"bad_rows": {"max_share": 0.0}}, "max_share must be in"),
    (
        {"optimization": {"use_streaming": True}, "data_split": {"auto_split": True}},
        "use_streaming must be off",
    ),
    (
        {"optimization": {"use_streaming": True}, "balance": {"enabled": True, "label_field": "a"}},
        "use_streaming must be off",
    ),
    (
        {"optimization": {"use_streaming": True}, "image_captioning": {"multiple_captions": True}},
        "use_streaming must be off",
    ),
]


@pytest.mark.parametrize("change, message", WRONG, ids=lambda value: str(value)[:40])
def test_contradictions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build(PipelineConfig, PLAIN | change, "p.yaml")


def test_what_the_yaml_names_has_to_be_there(write_config, world, tmp_path):
    for change, message in [
        ({"data_paths": {"train": "nowhere.jsonl"}}, "there is no data at nowhere.jsonl"),
        ({"tokenizer": {"name": str(tmp_path / "none")}}, "tokenizer > name: '.*none' cannot be read"),
        ({"tokenizer": {}}, "tokenizer > name is not given"),
        ({"image_processor": {"name": str(tmp_path)}}, "image_processor > name: '.*' cannot be read"),
        ({"tokenizer": {"name": str(world / "blip")}, "image_processor": {"type": "blip"}}, None),
    ]:
        pipeline = DataPipeline(write_config(**change))
        if message is None:
            pipeline.setup()
            continue
        with pytest.raises(ValueError, match=message):
            pipeline.setup()


@pytest.mark.parametrize("name", ["output/easy_vqa/processor", "./none", "a/b/c"])
def test_a_missing_folder_is_not_called_a_bad_name_of_the_hub(write_config, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for local in (True, False):
        pipeline = DataPipeline(write_config(tokenizer={"name": name, "local_files_only": local}))
        with pytest.raises(ValueError) as error:
            pipeline.setup()
        told = f"tokenizer > name: {name!r} cannot be read: there is no folder at {name} in {tmp_path}"
        maker = "; it is made by python -m quicksviewer.data.easy_vqa" * name.startswith("output/easy_vqa")
        assert str(error.value) == told + maker


@pytest.mark.parametrize(
    "key, file, kind",
    [
        ("tokenizer", "tokenizer_config.json", "AutoTokenizer"),
        ("image_processor", "preprocessor_config.json", "AutoImageProcessor"),
    ],
)
def test_code_of_a_folder_is_not_run(write_config, world, tmp_path, monkeypatch, key, file, kind):
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    target = ["code.Own", None] if key == "tokenizer" else "code.Own"
    (folder / file).write_text(json.dumps({"auto_map": {kind: target}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "strange"}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=f"{key} > name: '.*strange' cannot be read: .* custom code"):
        DataPipeline(write_config(**{key: {"name": str(folder)}})).setup()
    assert not (tmp_path / "ran").exists()


def test_a_pipeline_says_when_it_is_not_ready_and_which_split_it_lacks(write_config):
    pipeline = DataPipeline(write_config())
    with pytest.raises(RuntimeError, match="call setup"):
        pipeline.get_train_dataloader()
    pipeline.setup()
    with pytest.raises(ValueError, match="no split 'test', only train: data_paths > test names no rows"):
        pipeline.get_test_dataloader()
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        pipeline.get_dataset("trian")
