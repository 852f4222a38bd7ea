"""MiniMindVLM as a row of SYSTEMS: pretraining teaches the projector alone, SFT the language model too.

    python -m quicksviewer data make --recipe minimind
    python -m quicksviewer train --recipe minimind --stage pretrain
    python -m quicksviewer train --recipe minimind --stage sft

`--model_name_or_path` is a MiniMind language model (with `--vision_tower`, a CLIP or SigLIP checkpoint) or a
MiniMindVLM of an earlier stage. The tower stays frozen. Data are the mixtures of the video model, rows with
videos excepted.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quicksviewer.train.args import Run, resolved
from quicksviewer.train.callbacks import CheckGradients
from quicksviewer.train.router import RouterLoss
from quicksviewer.train.stages import build_data
from quicksviewer.train.stages import check_paths as check_files
from quicksviewer.train.systems import System, learning_prefixes
from quicksviewer.train.trainer import StageTrainer
from quicksviewer.utils.modules import train_only
from quicksviewer.utils.registry import load_target

PARTS = {
    "projector": ("vision_proj",),
    "llm": ("model", "lm_head"),
    "vision_tower": ("vision_encoder",),
}
STAGES = {"pretrain": ("projector",), "sft": ("projector", "llm")}
FOLLOWS = frozenset(
    {
        *("model_name_or_path", "vision_tower", "version", "attn_implementation"),
        *("data_path", "data_registry", "stop_at_bad_sample", "max_bad_share", "quarantine"),
        *("model_max_length", "mm_projector_lr"),
    }
)
OWN_TYPE = "minimind_vlm"
HOST = ("groups", "frame_times", "medium_frames", "medium_is_video")
"""Entries of a batch that are not for this model."""


@dataclass(frozen=True)
class Loaded:
    """A model with its processor."""

    model: Any
    processor: Any


def model_type(folder: str | None) -> str | None:
    """What a checkpoint folder says it is."""
    path = Path(folder or "") / "config.json"
    return json.loads(path.read_text()).get("model_type") if path.is_file() else None


def check_paths(recipe: str, stage: str, model, data, output_dir: str | None) -> None:
    """ValueError for files of a run that are not there, and for a checkpoint of another family."""
    check_files(recipe, stage, model, data, output_dir, lambda folder, _: model_type(folder) != OWN_TYPE)
    if (found := model_type(model.model_name_or_path)) not in ("minimind", OWN_TYPE):
        raise ValueError(
            f"--model_name_or_path {model.model_name_or_path} holds a {found}, expected a minimind"
        )


def check_run(run: Run) -> None:
    """ValueError for a structure: it is that of the checkpoints."""
    if run.mm:
        raise ValueError("the section mm of a recipe is for the video model; leave it out")


def build_model(run: Run) -> Loaded:
    """The MiniMindVLM of a run with its processor, in float32."""
    load_target("quicksviewer.auto:register")()  # for AutoTokenizer, which looks at the model's config
    vlm, processor = (
        load_target(f"quicksviewer.minimind.{name}")
        for name in ("vision_encoder:MiniMindVLM", "processor:MiniMindProcessor")
    )
    folder, tower = run.model.model_name_or_path, run.model.vision_tower
    extra = dict(dtype=torch.float32, local_files_only=True, use_safetensors=True)
    if run.model.attn_implementation:
        extra["attn_implementation"] = run.model.attn_implementation
    if model_type(folder) == OWN_TYPE:
        model = vlm.from_pretrained(folder, **extra)
        return Loaded(model, processor.from_pretrained(folder))
    tokenizer = load_target("transformers:AutoTokenizer").from_pretrained(folder, local_files_only=True)
    model = _with_tower(vlm, folder, tower, extra)
    load_target("quicksviewer.minimind.processor:add_image_mark")(model, tokenizer)
    return Loaded(model, processor.of(model, tokenizer, run.model.version))


def _with_tower(vlm, folder: str, tower: str, extra: dict):
    """A fresh MiniMindVLM around a language model and a tower."""
    language_model = load_target("quicksviewer.minimind.model:MiniMindForCausalLM").from_pretrained(
        folder, **extra
    )
    model = vlm(load_target("quicksviewer.minimind.config:VLLMconfig").of(language_model.config), tower)
    model.config._attn_implementation = language_model.config._attn_implementation
    model.load_state_dict(language_model.state_dict(), strict=False)
    return model


class MiniMindTrainer(StageTrainer):
    """The loss of the tokens over those of the whole step, plus the routers' loss over its documents."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._routers = RouterLoss(self.model.config)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and how many tokens the whole step has."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._routers.begin_step(batches, self.accelerator.gather, device)
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Both losses, scaled by the number of processes, because their gradients are averaged over them."""
        given = {name: values for name, values in inputs.items() if name not in HOST}
        loss, outputs = super().compute_loss(model, given, True, num_items_in_batch)
        router = self._routers.term(outputs, given, self.accelerator.num_processes)
        loss = loss if router is None else loss + router
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict, *args, **kwargs) -> None:
        """Add the routers' loss and who was busy."""
        if "loss" in logs:
            logs |= self._routers.report()
        super().log(logs, *args, **kwargs)


def build_trainer(run: Run, loaded: Loaded) -> MiniMindTrainer:
    """The trainer of a run, with the parts of its stage trainable and all others frozen."""
    loaded.model.config.use_cache = False
    model = train_only(loaded.model, learning_prefixes(loaded.model, PARTS, STAGES[run.stage]))
    data = build_data(run, loaded.processor)
    return MiniMindTrainer(
        model=model,
        args=run.training,
        processing_class=loaded.processor,
        callbacks=[CheckGradients()],
        parts=PARTS,
        rates=run.training.part_rates(),
        resolved=resolved(run),
        fingerprint=data["train_dataset"].fingerprint,
        **data,
    )


MINIMIND = System(
    parts=PARTS,
    stages=STAGES,
    follows=FOLLOWS,
    check_paths=check_paths,
    check_run=check_run,
    build_model=build_model,
    check_model=lambda run, model: None,  # nothing that a flag could ask of it is missing
    build_trainer=build_trainer,
)
