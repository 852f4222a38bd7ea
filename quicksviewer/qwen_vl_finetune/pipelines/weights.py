"""What was trained, on disk: modules in safetensors with their shape beside them, folders sealed by a
manifest."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from quicksviewer.utils.config import build, load_mapping, save_json, to_plain
from quicksviewer.utils.manifest import check, seal

WRAPPED = "base_model.model."
"""What PEFT puts before the names of a model's own modules."""
HEADS, SETTINGS = "heads.safetensors", "settings.json"
Module = TypeVar("Module", bound=nn.Module)


def save_module(path: Path, module: nn.Module, of: Mapping[str, Any] | None = None) -> None:
    """A module that has a `config`; whoever reads the file sees the old one or the whole new one. `of`: the
    training that it is of, for a file that belongs with others."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    about = {"module": type(module).__name__, "config": json.dumps(to_plain(module.config))}
    about |= {name: str(value) for name, value in (of or {}).items()}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    try:
        save_file(state, unfinished, metadata=about)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_module(path: Path, kind: type[Module], config: type, of: Mapping[str, Any] | None = None) -> Module:
    """A module of class `kind` as `save_module` wrote it. ValueError for another file, another module, one of
    another training than `of`."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are read from .safetensors files; pickled ones are never opened")
    if not path.is_file():
        raise FileNotFoundError(f"no weights of {kind.__name__} at {path}")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if about.get("module") != kind.__name__:
        raise ValueError(f"{path} holds {about.get('module', 'something else')}, expected {kind.__name__}")
    _check_training(path, about, of or {})
    module = kind(build(config, json.loads(about["config"]), str(path)))
    module.load_state_dict(state)
    return module


def _check_training(path: Path, about: Mapping[str, str], of: Mapping[str, Any]) -> None:
    for name, expected in of.items():
        if about.get(name) != str(expected):
            raise ValueError(
                f"{path} is of {name} {about.get(name)}, expected {name} {expected}: a training was stopped "
                "while it wrote, or files of two were mixed; train again"
            )


@contextmanager
def whole_folder(final: Path):
    """A folder to write into; it gets its name, a manifest in it, when all is written. An older one is
    replaced."""
    aside = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        seal(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_adapters(
    folder: Path, model: nn.Module, settings: Mapping[str, Any], *more: Callable[[Path], None]
) -> None:
    """Adapters of a PeftModel and what they were trained with; `more` writes further files beside them.

    Layers are named in full. PEFT shortens long lists to endings that are unique in the model at hand;
    those of the tower alone would match the language model too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    model.peft_config["default"].target_modules = {name.removeprefix(WRAPPED) for name in layers}
    with whole_folder(folder) as aside:
        model.save_pretrained(aside, safe_serialization=True)
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card
        save_json(aside / SETTINGS, settings)
        for write in more:
            write(aside)


def read_settings(folder: Path) -> dict[str, Any]:
    """What a folder of adapters was trained with. ValueError for a folder that is not whole or is none."""
    if folder.suffix == ".pt" or folder.is_file():
        raise ValueError(f"{folder}: checkpoints are folders of safetensors; pickled files are never opened")
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint {folder}; train first, or say where it is")
    check(folder)
    return load_mapping(folder / SETTINGS)
