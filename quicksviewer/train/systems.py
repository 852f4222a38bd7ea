"""Kinds of models that the trainer trains: a row of SYSTEMS each, named by a recipe (`system: blip_vqa`).

The contract of a row, in the order in which train.py calls it:

    stages, parts       which parts of the model learn in which stage, and where a part's parameters lie
    follows             which of this project's own flags it heeds; others are refused
    check_paths         before the machine is looked at: every file that the run needs is there
    check_run           settings that contradict each other, before anything is loaded
    build_model         -> an object with `model` (a PreTrainedModel) and its `processor`, which is saved
                        beside every checkpoint
    check_model         settings that ask of the model what it does not have
    build_trainer       -> a StageTrainer (trainer.py) whose model has its stage's parts trainable, with a
                        `train_dataset` (len, rows by number, `fingerprint`) and a collator

All refuse with a ValueError that says what to do. The entry, the order of samples, checkpoints, resume, rates
by part, the report of what learns and the check of gradients are the same for all rows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quicksviewer.utils.registry import load_target, lookup

SYSTEMS = {
    "quicksviewer": "quicksviewer.train.video:VIDEO",
    "blip_vqa": "quicksviewer.train.vision_language:BLIP_VQA",
    "minimind": "quicksviewer.train.minimind_vlm:MINIMIND",
}
"""Name -> where its row lies; imported when a recipe names it."""
DEFAULT = "quicksviewer"


@dataclass(frozen=True, kw_only=True)
class System:
    """One kind of model. The module's docstring says when each field is used; `Any` is a Run or its model."""

    parts: Mapping[str, tuple[str, ...]]
    stages: Mapping[str, tuple[str, ...]]
    follows: frozenset[str] | None = None
    """None: all of them."""
    check_paths: Callable[[str, str, Any, Any, str | None], None]
    """Of (recipe, stage, ModelArguments, DataArguments, output_dir)."""
    check_run: Callable[[Any], None]
    build_model: Callable[[Any], Any]
    check_model: Callable[[Any, Any], None]
    build_trainer: Callable[[Any, Any], Any]
    forms_teams: bool = False
    """Whether its model can share rows among processes (sequence parallelism)."""


def system_named(name: str) -> System:
    """A row of SYSTEMS. ValueError for an unknown name."""
    return load_target(lookup(SYSTEMS, name, "system"))


def learning_prefixes(model, parts: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> tuple[str, ...]:
    """Dotted prefixes of the parameters of some parts in this model. Parts without parameters have none."""
    known = [name for name, _ in model.named_parameters()]
    prefixes = [prefix for part in names for prefix in parts[part]]
    return tuple(p for p in prefixes if any(name.startswith(p + ".") for name in known))
