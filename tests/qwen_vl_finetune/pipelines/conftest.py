"""Forged pictures, a tiny Qwen2.5-VL with random weights, and each step's settings at a debug size."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from quicksviewer.qwen_vl_finetune.pipelines import steps
from quicksviewer.qwen_vl_finetune.pipelines.config import read
from quicksviewer.qwen_vl_finetune.pipelines.tiny_base import BaseConfig, make_base
from quicksviewer.synthetic.forgeries import ForgerySpec, write_forgeries
from quicksviewer.utils.registry import load_target

SMALL = dict(num_workers=0, image_size=84, torch_dtype="float32", amp_dtype="float32", epochs=1)
BLOCKS = [0, 1, 2, 3]
OVERRIDES = {
    "modular-train": SMALL | dict(visual_layers=BLOCKS, lora_target_layers=BLOCKS, model_path="model"),
    "modular-eval-heads": dict(
        num_workers=0,
        torch_dtype="float32",
        visual_layers=None,
        lora_target_layers=None,
        overlays=2,
        model_path="model",
    ),
    "modular-eval-full": dict(
        torch_dtype="float32", lora_target_layers=None, model_path="model", dataset_limit=2
    ),
    "lm-map": dict(map_kwargs={"batch_size": 2, "num_proc": 1}, map_batch_size=5),
    "lm-train": dict(
        image_size=84,
        torch_dtype="float32",
        lora_target_blocks=BLOCKS,
        training_args=dict(num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=1),
    ),
    "lm-infer": dict(torch_dtype="float32", dataset_limit=4),
    "hybrid-train": SMALL
    | dict(
        visual_layers=BLOCKS,
        lora=dict(visual=dict(blocks=BLOCKS), lm=dict(module_patterns=["q_proj", "v_proj"])),
    ),
    "hybrid-eval": dict(torch_dtype="float32", num_workers=0, overlays=2),
}
"""Step -> keys of its shipped configuration that the debug size says otherwise."""


@dataclass(frozen=True)
class World:
    """A folder with data and model; steps read and write below it."""

    root: Path

    def overrides(self, step: str, **more) -> dict:
        model = {} if step.startswith("modular") else {"base_model_path": "model"}
        return {
            "working_dir": str(self.root),
            "output_root": str(self.root),
            **OVERRIDES[step],
            **model,
            **more,
        }

    def settings(self, step: str, **more):
        kind = load_target(f"{steps.HERE}.settings:{steps.STEPS[step].config}")
        return read(kind, steps.shipped(step), self.overrides(step, **more))

    def run(self, step: str, run_id: str | None = None, **more) -> dict:
        return steps.run(step, steps.shipped(step), run_id, self.overrides(step, **more))


@pytest.fixture(scope="session")
def forgery_source(tmp_path_factory):
    root = tmp_path_factory.mktemp("forgeries")
    write_forgeries(root / "data", ForgerySpec(train=12, val=4, test=8, size=84))
    make_base(root / "model", BaseConfig(steps=0, size=84))
    return root


@pytest.fixture
def world(forgery_source, tmp_path):
    """The shared pictures and model, outputs of the test's own."""
    for name in ("data", "model"):
        (tmp_path / name).symlink_to(forgery_source / name)
    return World(tmp_path)
