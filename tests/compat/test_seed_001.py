"""Seed 001 (Qwen2.5-VL LoRA pipelines): every command of the document, as it is written, on a tiny model.

The document has no fenced blocks; its commands stand in the text. They run in a folder that has `Qwen_code`,
as in a clone, with the absolute paths of its configurations changed to that folder, which is what the
document says to do; models and runs are made small the same way.
"""

import csv
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import COMPAT, Document

from quicksviewer.qwen_vl_finetune.pipelines.experiment import EXPERIMENTS
from quicksviewer.qwen_vl_finetune.pipelines.tiny_base import BaseConfig, make_base
from quicksviewer.synthetic.forgeries import ForgerySpec, write_forgeries

DOCUMENT = Document("001_qwen25vl_lora_pipelines.md")
COMMANDS = list(dict.fromkeys(re.findall(r"`(python Qwen_code/[^`]+)`", DOCUMENT.path.read_text("utf-8"))))
ONE_CLICK = [command for command in COMMANDS if "/run_" in command]
SINGLE = [command for command in COMMANDS if command not in ONE_CLICK]
MODEL = "Qwen2.5-VL-7B-Instruct"
BLOCKS = [0, 1, 2, 3]
TINY = dict(torch_dtype="float32", num_workers=0, batch_size=4)
FIT = TINY | dict(amp_dtype="float32", image_size=84, epochs=1, visual_layers=BLOCKS)
SMALLER = {
    "config_lora.json": FIT | dict(lora_target_layers=BLOCKS),
    "config_eval.json": TINY | dict(visual_layers=BLOCKS, lora_target_layers=BLOCKS),
    "config_full_model_eval.json": dict(
        torch_dtype="float32", image_size=84, lora_target_layers=BLOCKS, dataset_limit=4
    ),
    "config_map.json": dict(map_kwargs=dict(batch_size=5, num_proc=1)),
    "config_lora_trainer.json": dict(
        torch_dtype="float32",
        image_size=84,
        lora_target_blocks=BLOCKS,
        training_args=dict(num_train_epochs=1, per_device_train_batch_size=4),
    ),
    "config_lora_infer.json": dict(torch_dtype="float32", dataset_limit=4),
    "config_hybrid_train.json": FIT
    | dict(lora=dict(visual=dict(blocks=BLOCKS), lm=dict(module_patterns=["q_proj", "v_proj"]))),
    "config_hybrid_eval.json": TINY,
}
"""File -> keys that make it small."""
WRITTEN = {
    "task1_modular_lora/training": ("train_log.csv", "modular_vit_lora/adapter_model.safetensors"),
    "task1_modular_lora/subtask_vit_head_eval": ("metrics.csv", "inference_results.json"),
    "task1_modular_lora/subtask_full_model_eval": ("metrics.csv", "inference_results.json"),
    "task2_lm_lora/datasets": ("train/rows.jsonl", "test/manifest.json"),
    "task2_lm_lora/training": ("train_log.csv", "lora_adapter/adapter_model.safetensors"),
    "task2_lm_lora/evaluation": ("metrics.csv", "inference_results.json"),
    "task3_hybrid_lora/training": ("task3_lora/manifest.json", "task3_heads.safetensors"),
    "task3_hybrid_lora/evaluation": ("metrics.csv", "inference_results.json"),
}
"""Folders that the document names -> what is in them afterwards."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What the document calls /root/autodl-tmp: data, the model's folder, Qwen_code."""
    root = tmp_path_factory.mktemp("autodl-tmp")
    write_forgeries(root / "data", ForgerySpec(train=8, val=2, test=4, size=84))
    make_base(root / MODEL, BaseConfig(steps=0, size=84))
    shutil.copytree(COMPAT / "Qwen_code", root / "Qwen_code", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (root / "Qwen_code").rglob("*.json"):
        values = json.loads(path.read_text().replace("/root/autodl-tmp", str(root)))
        path.write_text(json.dumps(values | SMALLER[path.name]))
    return root


def run(command: str, monkeypatch) -> int:
    """A command of the document in this process, which knows torch already."""
    python, script, *rest = shlex.split(command)
    assert python == "python"
    monkeypatch.setattr(sys, "argv", [script, *rest])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    return end.value.code


def test_the_document_has_these_commands_and_no_other_code():
    assert DOCUMENT.blocks == ()
    assert (len(SINGLE), len(ONE_CLICK)) == (8, len(EXPERIMENTS)) == (8, 4)


def test_every_command_runs_as_it_is_written(clone, monkeypatch):
    monkeypatch.chdir(clone)
    assert [run(command, monkeypatch) for command in SINGLE] == [0] * len(SINGLE)
    text = DOCUMENT.path.read_text("utf-8")
    for folder, names in WRITTEN.items():
        assert folder.split("/")[0] in text and folder.split("/")[1] in text
        assert [name for name in names if not (clone / folder / name).is_file()] == []
    for folder in (folder for folder, names in WRITTEN.items() if "metrics.csv" in names):
        with (clone / folder / "metrics.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert 0 <= float(row["auroc"]) <= 1 and row["run_id"]


def test_every_path_and_configuration_of_the_document_is_there(clone):
    text = DOCUMENT.path.read_text("utf-8")
    paths = set(re.findall(r"(?:Qwen_code|subtask_\w+)/[\w./]+", text)) - set(WRITTEN)
    found = [path for path in paths if not any(clone.glob(f"**/{path.rstrip('/')}"))]
    assert found == []
    named = set(re.findall(r"config_\w+\.json", text))
    assert named == set(SMALLER)


@pytest.mark.slow
@pytest.mark.parametrize("command", ONE_CLICK)
def test_every_one_click_command_runs_as_it_is_written(clone, command):
    words = [sys.executable, *shlex.split(command)[1:]]
    env = {"PYTHONPATH": str(COMPAT.parent), "PATH": str(Path(sys.executable).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
