"""Checkpoints: whole or not there, with the place in the data, and for LoRA everything that the base lacks.

A checkpoint is written under STAGING, listed in a manifest, and renamed. A run resumes from nothing else.
"""

import json
import shutil
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from quicksviewer.model.builder import OTHER_FILE
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.utils.config import build
from quicksviewer.utils.dist import barrier, is_main
from quicksviewer.utils.manifest import check, seal, write_manifest
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)
STAGING = "unfinished"
"""Folder beside the checkpoints in which the next one is written."""
DATA_STATE = "data_state.json"
DONE = "COMPLETE"
"""Written last into an output folder: the run reached its end and everything before it is on disk."""

EYES = tuple(f"{prefix}." for part, prefixes in PARTS.items() if part != "llm" for prefix in prefixes)
"""Where the names of all weights outside the language model begin."""


class ResumeError(ValueError):
    """A checkpoint that a run cannot go on from."""


@dataclass(frozen=True, kw_only=True)
class DataState:
    """Where a run stands in its order of samples."""

    fingerprint: str
    """Of the mixture."""
    rows: int
    """Of one epoch."""
    seed: int
    order: str
    step_rows: int
    """Samples of an optimizer step, over all processes."""
    step: int = 0
    """Optimizer steps done."""
    position: int = 0
    """Samples consumed by all processes."""

    def at(self, step: int, position: int) -> "DataState":
        return replace(self, step=step, position=position)

    def save(self, folder: Path) -> None:
        (folder / DATA_STATE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "DataState":
        """ResumeError where a checkpoint has none."""
        path = folder / DATA_STATE
        if not path.is_file():
            raise ResumeError(f"{folder} does not say where in the data it ended: {DATA_STATE} is missing")
        return build(cls, json.loads(path.read_text()), str(path))

    def expected_by(self, run: "DataState") -> "DataState":
        """This state, if it counts along the order of `run`; else ResumeError: samples would be lost."""
        for name in ("fingerprint", "rows", "seed", "order", "step_rows"):
            if (was := getattr(self, name)) != (now := getattr(run, name)):
                raise ResumeError(
                    f"the checkpoint counts samples in another order: {name} was {was!r}, is {now!r} now. "
                    "Resume with the same data, --seed, --train_sampling_strategy and rows of a step "
                    "(per_device_train_batch_size x gradient_accumulation_steps x processes), or start a new "
                    "run from its weights: --model_name_or_path"
                )
        return self


@contextmanager
def aside(trainer, run_dir: Path):
    """While it lasts the trainer writes into an empty folder beside its checkpoints."""
    staging = run_dir / STAGING
    if is_main():
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    barrier()
    trainer._staging = staging
    try:
        yield
    finally:
        trainer._staging = None


def publish(written: Path, final: Path) -> None:
    """Give a checkpoint its manifest and its name, when all processes have written their files."""
    barrier()
    if is_main():
        seal(written, final)
        shutil.rmtree(written.parent)
    barrier()


def keep_newest(run_dir: Path, limit: int | None) -> None:
    """Remove the oldest checkpoints beyond `limit`."""
    for folder in numbered_checkpoints(run_dir)[:-limit] if limit else ():
        shutil.rmtree(folder)


def abandon_later(run_dir: Path, step: int) -> None:
    """Rename checkpoints after the step at which a run starts: they belong to another history, and neither
    `last` nor the limit of checkpoints must count them."""
    if is_main():
        for folder in numbered_checkpoints(run_dir):
            if _number(folder) > step:
                new = folder.with_name(f"{folder.name}.abandoned")
                shutil.rmtree(new, ignore_errors=True)
                folder.rename(new)
                logger.warning("%s is of an earlier run that went further; it is now %s", folder, new.name)
    barrier()


def check_optimizer(checkpoint: Path, with_deepspeed: bool) -> None:
    """ResumeError where the optimizer of this engine would silently start afresh."""
    needed = ("latest",) if with_deepspeed else ("optimizer.pt", "scheduler.pt")
    if missing := [name for name in needed if not (checkpoint / name).is_file()]:
        raise ResumeError(
            f"{checkpoint} has no {' and no '.join(missing)}: it was written "
            f"{'without' if with_deepspeed else 'with'} DeepSpeed, or without an optimizer. Resume with the "
            "engine that wrote it, or start a new run from its weights: --model_name_or_path"
        )


def _number(folder: Path) -> int:
    return int(folder.name.split("-", 1)[1])


def numbered_checkpoints(run_dir: Path) -> list[Path]:
    """checkpoint-N folders, oldest first, whole or not."""
    found = [p for p in run_dir.glob("checkpoint-*") if p.name.split("-", 1)[1].isdigit()]
    return sorted(found, key=_number)


def save_extras(model, folder: Path, state_dict: dict | None = None) -> None:
    """For a LoRA model: the full config, and every tensor outside the language model, trained or not.

    PEFT's own files hold only the adapter; without these a killed run would lose cubing, resampler and
    projector.
    """
    if not hasattr(model, "peft_config"):
        return
    inner = model.get_base_model()
    config = deepcopy(inner.config)
    config.__dict__.pop("quantization_config", None)  # of this run; the base's files are not quantised
    config.save_pretrained(folder)
    tensors = state_dict if state_dict is not None else model.state_dict()
    kept = {name: t.detach().cpu().contiguous() for key, t in tensors.items() if (name := _eye(key))}
    save_file(kept, folder / OTHER_FILE, metadata={"format": "pt"})


def with_frozen(model, state_dict: dict | None) -> dict | None:
    """The weights that ZeRO-3 gathered for a LoRA model, and those that it left out because they are frozen.

    Every rank must call it: shards are gathered one after another, to the writer's memory.
    """
    if not hasattr(model, "peft_config"):
        return state_dict
    left_out = {
        key: parameter
        for key, parameter in model.named_parameters()
        if hasattr(parameter, "ds_id") and not parameter.requires_grad and _eye(key)
    }
    if not left_out:
        return state_dict
    import deepspeed

    found = {}
    for key, parameter in left_out.items():
        with deepspeed.zero.GatheredParameters([parameter]):
            if is_main():
                found[key] = parameter.detach().cpu().clone()
    return found | (state_dict or {})


def _eye(key: str) -> str | None:
    """The name without PEFT's wrapping of a tensor outside the language model; None for all others."""
    name = _without_peft(key)
    return name if name is not None and name.startswith(EYES) else None


def _without_peft(key: str) -> str | None:
    """The name that a tensor has without PEFT's wrapping; None for those of an adapter."""
    if ".lora_" in key:
        return None
    return key.removeprefix("base_model.model.").replace(".base_layer.", ".")


def load_extras(model, folder: Path) -> None:
    """The inverse of `save_extras`, into a model that trains. ValueError for tensors that the model lacks."""
    if not hasattr(model, "peft_config"):
        return
    inner = model.get_base_model()
    wrapped = {name: key for key in inner.state_dict() if (name := _without_peft(key)) is not None}
    saved = {wrapped.get(name, name): tensor for name, tensor in load_file(folder / OTHER_FILE).items()}
    strangers = inner.load_state_dict(saved, strict=False).unexpected_keys
    if strangers:
        raise ValueError(f"{folder / OTHER_FILE} has weights that the model lacks: {strangers[:3]}")


def safe_save_model_for_hf_trainer(trainer, output_dir: str) -> None:
    """The final model of a run: complete whatever was trained, gathered under ZeRO-3, marked as complete
    last."""
    trainer.save_model(output_dir)
    trainer.save_state()
    if is_main():
        folder = Path(output_dir)
        write_manifest(folder, [path for path in folder.iterdir() if path.is_file() and path.name != DONE])
        (folder / DONE).write_text(json.dumps({"global_step": trainer.state.global_step}) + "\n")


def newest_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint-N that is as its manifest says, or None. A warning names those passed over."""
    for old in Path(output_dir).glob("checkpoint-*.replaced"):  # a crash between the two renames of `seal`
        if not (whole := old.with_suffix("")).exists():
            old.rename(whole)
    for folder in reversed(numbered_checkpoints(Path(output_dir))):
        try:
            check(folder)
        except ValueError as error:
            logger.warning("passed over: %s", error)
        else:
            return str(folder)
    return None
