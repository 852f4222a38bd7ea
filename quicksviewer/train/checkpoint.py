"""What is written beside the weights, and LoRA: adapter and everything else that the base does not have."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from quicksviewer.model.builder import OTHER_FILE
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.utils.dist import is_main

DONE = "COMPLETE"
"""Written last into an output folder: the run reached its end and everything before it is on disk."""


def save_extras(model, folder: Path, state_dict: dict | None = None) -> None:
    """For a LoRA model: the full config, and every tensor outside the language model, trained or not.

    PEFT's own files hold only the adapter; without these a killed run would lose cubing, resampler and
    projector.
    """
    if not hasattr(model, "peft_config"):
        return
    inner = model.get_base_model()
    inner.config.save_pretrained(folder)
    tensors = state_dict if state_dict is not None else model.state_dict()
    eyes = tuple(f"{p}." for part, prefixes in PARTS.items() if part != "llm" for p in prefixes)
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    kept = {name: t.detach().cpu().contiguous() for name, t in plain.items() if name.startswith(eyes)}
    save_file(kept, folder / OTHER_FILE, metadata={"format": "pt"})


def load_extras(model, folder: Path) -> None:
    """The inverse of `save_extras`, into a model that trains. ValueError for tensors that the model lacks."""
    if not hasattr(model, "peft_config"):
        return
    inner = model.get_base_model()
    strangers = inner.load_state_dict(load_file(folder / OTHER_FILE), strict=False).unexpected_keys
    if strangers:
        raise ValueError(f"{folder / OTHER_FILE} has weights that the model lacks: {strangers[:3]}")


def safe_save_model_for_hf_trainer(trainer, output_dir: str) -> None:
    """The final model of a run: complete whatever was trained, gathered under ZeRO-3, marked as complete
    last."""
    trainer.save_model(output_dir)
    trainer.save_state()
    if is_main():
        folder = Path(output_dir)
        step = trainer.state.global_step
        (folder / DONE).write_text(json.dumps({"global_step": step}) + "\n")


def newest_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint-N of a folder that has its trainer state (the file that is written last), or
    None."""
    found = [p.parent for p in Path(output_dir).glob("checkpoint-*/trainer_state.json")]
    return str(max(found, key=lambda folder: int(folder.name.split("-")[1]))) if found else None
