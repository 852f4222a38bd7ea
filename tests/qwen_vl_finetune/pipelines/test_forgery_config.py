"""Every shipped configuration, and what is told of keys and values that are wrong."""

import json
import logging
from dataclasses import MISSING, fields

import pytest

from quicksviewer.qwen_vl_finetune.pipelines import steps
from quicksviewer.qwen_vl_finetune.pipelines.config import ROOT, read
from quicksviewer.qwen_vl_finetune.pipelines.hybrid import lora_targets
from quicksviewer.qwen_vl_finetune.pipelines.modular import target_layers
from quicksviewer.qwen_vl_finetune.pipelines.settings import HybridLora, ModularTrain
from quicksviewer.utils.config import build, to_plain
from quicksviewer.utils.registry import load_target

SEED_KEYS = {
    "modular-train": "working_dir model_path data_root ann_train out_dir seed epochs batch_size num_workers "
    "grad_accum lr_head lr_lora weight_decay warmup_ratio max_norm lora_target_layers visual_layers lora_r "
    "lora_alpha lora_dropout amp_dtype torch_dtype image_size lambda_cls lambda_evi lambda_sparse "
    "lambda_contrast evi_alpha train_log final_trained_heads",
    "modular-eval-heads": "working_dir ckpt_path model_path ann_test data_root out_dir csv_path output_json "
    "batch_size num_workers visual_layers lora_r lora_alpha lora_dropout",
    "modular-eval-full": "working_dir model_path lora_checkpoint annotation_file data_root csv_path "
    "prompt_text fake_token real_token max_new_tokens seed image_size torch_dtype dataset_limit "
    "temperature top_p lora_r",
    "lm-map": "working_dir base_model_path data_root prompt_template map_batch_size map_kwargs datasets "
    "dataset_limit",
    "lm-train": "working_dir base_model_path torch_dtype train_dataset_path lora_target_blocks "
    "lora_extra_modules lora_r lora_alpha lora_dropout lora_bias lora_task_type training_args save_lora_path",
    "lm-infer": "working_dir base_model_path lora_path annotation_file data_root csv_path "
    "prompt_text fake_token real_token max_new_tokens torch_dtype dataset_limit temperature top_p "
    "output_json mapped_dataset_path",
    "hybrid-train": "working_dir base_model_path output_dir lr_fusion visual_layers fusion_tokens "
    "fusion_hidden_dropout target_text loss_weights lora train_log lora_checkpoint head_checkpoint "
    "fusion_checkpoint",
    "hybrid-eval": "working_dir base_model_path output_dir ann_eval metrics_csv inference_output",
}
"""Step -> keys of seed 001's files."""


PLACES = {
    *("working_dir", "output_root", "num_workers", "output_json", "map_kwargs", "training_args"),
    *("lora_target_layers", "visual_layers", "lora_r", "lora_alpha", "lora_dropout", "image_size"),
}
"""Where a shipped file may differ from the defaults: paths, workers, and what a checkpoint says itself."""


def kind_of(step: str):
    return load_target(f"{steps.HERE}.settings:{steps.STEPS[step].config}")


@pytest.mark.parametrize("step", steps.STEPS)
def test_a_shipped_configuration_has_the_seeds_keys_and_places(step, caplog):
    values = json.loads(steps.shipped(step).read_text())
    assert set(SEED_KEYS[step].split()) <= set(values)
    with caplog.at_level(logging.WARNING):
        config = read(kind_of(step), steps.shipped(step))
    assert not caplog.text
    assert config.working_dir == config.output_root == ROOT
    assert str(config.data) == f"{ROOT}/data"


@pytest.mark.parametrize("step", steps.STEPS)
def test_an_unknown_key_is_told_and_a_missing_one_named(step, tmp_path, caplog):
    values = json.loads(steps.shipped(step).read_text())
    required = [
        f.name for f in fields(kind_of(step)) if f.default is MISSING and f.default_factory is MISSING
    ]
    assert required
    for name in required:
        path = tmp_path / "less.json"
        path.write_text(json.dumps({key: value for key, value in values.items() if key != name}))
        with pytest.raises(ValueError, match=f"less.json: .* needs '{name}'"):
            read(kind_of(step), path)
    path = tmp_path / "more.json"
    path.write_text(json.dumps(values | {"working_dirr": "x"}))
    with caplog.at_level(logging.WARNING):
        read(kind_of(step), path)
    assert "nothing reads 'working_dirr'. Did you mean 'working_dir'?" in caplog.text


@pytest.mark.parametrize("step", steps.STEPS)
def test_the_file_says_what_is_the_default_anyway(step):
    """But for paths and workers, so that no number is said twice with two values."""
    kind = kind_of(step)
    shipped = to_plain(read(kind, steps.shipped(step)))
    required = {
        f.name: shipped[f.name] for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    }
    if step == "lm-infer":
        required["annotation_file"] = shipped["annotation_file"]
    default = to_plain(build(kind, required, "defaults"))
    differ = {key for key in shipped if shipped[key] != default[key]}
    assert differ <= PLACES


def test_inner_keys_are_told_too(tmp_path, caplog):
    values = json.loads(steps.shipped("hybrid-train").read_text())
    values["lora"]["visual"]["block"] = [1]
    path = tmp_path / "hybrid.json"
    path.write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        read(kind_of("hybrid-train"), path)
    assert "lora > visual: nothing reads 'block'. Did you mean 'blocks'?" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("image_size", 450, "multiple of 28"),
        ("amp_dtype", "float16", "unknown dtype 'float16'"),
        ("warmup_ratio", 1.0, "warmup_ratio must be at least 0 and below 1"),
        ("epochs", 0, "epochs must be above 0"),
        ("lambda_evi", -1.0, "head_evi must not be negative"),
        ("lora_r", "8", "expected int, got '8'"),
        ("evi_alpha", 2.0, "evi_alpha must be in 0 .. 1"),
    ],
)
def test_a_wrong_value_is_refused(key, value, told):
    with pytest.raises(ValueError, match=told):
        read(ModularTrain, steps.shipped("modular-train"), {key: value})


def test_adapters_that_no_loss_reaches_are_refused():
    config = read(ModularTrain, steps.shipped("modular-train"), {"visual_layers": [7, 15]})
    with pytest.raises(ValueError, match="lie above the last of visual_layers, 15"):
        target_layers(config)
    free = read(
        ModularTrain, steps.shipped("modular-train"), {"visual_layers": [7], "lora_target_layers": None}
    )
    assert target_layers(free) == tuple(range(8))


def test_an_enabled_part_without_layers_is_refused():
    with pytest.raises(ValueError, match="merger is enabled and names no layer"):
        lora_targets(build(HybridLora, {"merge": {"module_patterns": []}}, "lora"))
    off = {"enabled": False}
    with pytest.raises(ValueError, match="none of visual, merge and lm is enabled"):
        lora_targets(build(HybridLora, {"visual": off, "merge": off, "lm": off}, "lora"))


def test_a_configuration_that_is_not_there_is_an_exit_code(capsys, tmp_path):
    assert steps.script("lm-train", steps.shipped("lm-train"), ["--config", str(tmp_path / "no.json")]) == 1
    assert "error: no configuration" in capsys.readouterr().err
    assert steps.main(["modular-trian"]) == 2
    assert "Did you mean 'modular-train'?" in capsys.readouterr().err
