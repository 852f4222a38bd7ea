"""Seed 000 (`qwen_vl_finetune`): its three usages, word for word, on a tiny model and drawn formulas.

Nothing is replaced. What the document leaves to defaults is said in the settings file that
QWEN_VL_FINETUNE_CONFIG names, as a user without a network would say it.
"""

import os
import runpy
import subprocess
import sys
from unittest.mock import patch

import pytest
from blocks import COMPAT, Document, compat_on_path, run

from quicksviewer.qwen_vl_finetune import __all__ as public
from quicksviewer.qwen_vl_finetune.settings import CONFIG
from quicksviewer.qwen_vl_finetune.tiny_base import BaseConfig, make_base

DOCUMENT = Document("000_qwen_vl_finetune.md")
SETTINGS = """
model_name: {base}
dataset_name: synthetic
max_samples: 12
max_steps: 2
logging_steps: 1
gradient_accumulation_steps: 2
max_new_tokens: 6
"""
MODULES = {
    "model_setup": {"fourbit_models", "load_model_and_tokenizer", "setup_peft_model", "load_lora_model",
                    "save_model", "save_merged_model", "push_to_hub_merged", "show_memory_stats"},
    "data_processing": {"load_latex_dataset", "display_dataset_sample", "render_latex",
                        "convert_to_conversation", "convert_dataset_to_conversations",
                        "show_conversation_example"},
    "training": {"setup_trainer", "train_model", "show_training_stats"},
    "inference": {"prepare_messages", "prepare_inputs", "generate_response", "run_inference"},
    "utils": {"get_gpu_memory_info", "print_memory_usage", "calculate_memory_difference"},
    "main": {"main_training_pipeline", "main_inference_pipeline"},
}  # fmt: skip
"""Module of the document -> the names that it promises."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("seed_000")
    base = make_base(root / "base", BaseConfig(width=32, steps=0, texts=100))
    (root / "settings.yaml").write_text(SETTINGS.format(base=base))
    return root


@pytest.fixture
def place(root, tmp_path, monkeypatch):
    """A folder of its own, with the settings, where the document's imports work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONFIG, str(root / "settings.yaml"))
    with compat_on_path():
        yield tmp_path


def learned(model) -> bool:
    """Whether adapters have left their start, in both towers."""
    ups = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    return all(
        any(p.abs().sum() > 0 for name, p in ups.items() if tower in name) for tower in ("visual", "layers")
    )


def test_the_document_has_these_blocks():
    assert [block.language for block in DOCUMENT.blocks] == ["", "python", "python"]
    named = DOCUMENT.blocks[0].code
    assert all(f"{module}.py" in named for module in MODULES)


def test_method_1_the_two_pipelines(place, capsys):
    names = run(DOCUMENT, DOCUMENT.block("方法1"))
    out = capsys.readouterr().out
    assert "before training:" in out and "after training:" in out and "training took" in out
    assert len(names["dataset"]) == 12 and names["model"].is_loaded_in_4bit
    assert {path.name for path in place.iterdir()} >= {"lora_model", "outputs"}
    with_adapters, processor = names["main_inference_pipeline"]("lora_model")
    assert learned(with_adapters) and not with_adapters.training
    assert processor.tokenizer.get_vocab() == names["tokenizer"].tokenizer.get_vocab()


def test_method_2_the_modules_one_by_one(place):
    names = run(DOCUMENT, DOCUMENT.block("方法2"))
    assert learned(names["model"]) and names["trainer_stats"].metrics["train_runtime"] > 0
    assert names["trainer"].state.global_step == 2
    assert len(names["converted_dataset"]) == len(names["dataset"]) == 12


def script(name: str, *words: str) -> int:
    """Run a script of compat/ as `python NAME WORDS` would, and give its exit code."""
    with patch.object(sys, "argv", [name, *words]), pytest.raises(SystemExit) as stop:
        runpy.run_path(str(COMPAT / name), run_name="__main__")
    return stop.value.code


@pytest.mark.parametrize("mode", ["custom", "inference"])
def test_method_3_the_example_file(place, mode):
    assert script("qwen_vl_finetune_refactored.py", "--mode", mode) == 0
    assert (place / "lora_model" / "adapter_model.safetensors").is_file() == (mode == "custom")


def test_the_old_single_file_trains_and_has_the_same_options(place, monkeypatch, capsys):
    assert script("qwen-vl-finetune.py", "--mode", "nothing") == 2
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
    monkeypatch.setenv(CONFIG, str(place / "gone.yaml"))
    assert script("qwen-vl-finetune.py") == 2
    assert "gone.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_names(module):
    from importlib import import_module

    with compat_on_path():
        package, home = import_module("qwen_vl_finetune"), import_module(f"qwen_vl_finetune.{module}")
        assert all(getattr(package, name) is getattr(home, name) for name in MODULES[module])
        assert package.__version__ and set(package.__all__) == set(public) >= MODULES[module]


def test_importing_it_is_light():
    code = (
        "import sys; sys.argv = ['-m']; import qwen_vl_finetune; "
        "print([n for n in ('torch', 'transformers', 'peft', 'bitsandbytes', 'unsloth') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{COMPAT}{os.pathsep}{COMPAT.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]", done.stderr
