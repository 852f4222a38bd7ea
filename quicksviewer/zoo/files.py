"""Checkpoints on disk: configs, weights that must be complete, saving so that loading gives the same.

Weights are safetensors. A folder that `save_model` wrote is a checkpoint of transformers, if the model is one
of transformers'; of any other module it holds `model.safetensors` alone.
"""

import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from quicksviewer.utils.modules import keep_4bit_layout, move_model_to_device, quantised_modules
from quicksviewer.utils.places import maker_of, may_be_on_hub, missing
from quicksviewer.utils.registry import load_target
from quicksviewer.utils.utils import get_logger
from quicksviewer.zoo.options import LoadOptions, to_device
from quicksviewer.zoo.registry import AUTO, FAMILIES, Family, family_named, saved_class

WEIGHTS = "model.safetensors"
WEIGHT_FILES = {"model": ("model*.safetensors*", "pytorch_model*.bin*"), "adapter": ("adapter_model*",)}
"""Kinds of weights -> their files in a folder. An adapter lies beside its base without replacing it."""
HINTS = {
    "Salesforce/blip-base": "BLIP's published checkpoints for retrieval are Salesforce/blip-itm-base-coco, "
    "blip-itm-base-flickr and the two large ones"
}
"""Names that are quoted and do not exist -> what to load in their place."""

log = get_logger(__name__)


def read_config(name: str | os.PathLike, options: LoadOptions) -> dict:
    """config.json of a folder or of a model on the hub. FileNotFoundError says what was looked for."""
    from transformers import PreTrainedConfig

    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name} is no checkpoint of a model: it has no config.json")
    if not folder.is_dir() and not may_be_on_hub(name):
        told = f"{name!s} is neither a folder nor a model that can be had from the hub"
        raise FileNotFoundError(f"{told}: {missing('folder', name)}")
    near = dict(revision=options.revision, cache_dir=options.cache_dir)
    try:
        config, _ = PreTrainedConfig.get_config_dict(
            os.fspath(name), local_files_only=options.local_files_only or folder.is_dir(), **near
        )
    except (OSError, ValueError) as error:  # a damaged config.json is told as an OSError too
        if folder.is_dir():
            raise ValueError(f"{folder / 'config.json'} is not JSON of a config: {error}") from error
        hint = f" {HINTS[str(name)]}." if str(name) in HINTS else ""
        hint += f" It is made by {maker}." if (maker := maker_of(name)) else ""
        raise FileNotFoundError(
            f"{name!s} is neither a folder nor a model that can be had from the hub.{hint} "
            f"transformers says: {str(error).splitlines()[0]}"
        ) from error
    return config


def read_model(target: str | type, name, config: dict, row: Family, options: LoadOptions, device):
    """The model of a class, in eval mode on its device. ValueError if the checkpoint lacks some weights."""
    cls = load_target(target) if isinstance(target, str) else target
    stored = config.get("quantization_config")
    if stored and options.is_quantised:
        raise ValueError(f"{name} is quantised already ({stored.get('quant_method')}): leave load_in_... out")
    arguments = options.arguments(device, row.precise)
    if stored:
        arguments.setdefault("device_map", {"": str(device)})
    try:
        model, report = cls.from_pretrained(os.fspath(name), output_loading_info=True, **arguments)
    except SafetensorError as error:
        raise ValueError(f"{name} has a damaged weight file: {error}") from error
    _check_weights(name, config, model, report)
    if options.is_quantised or stored:
        settings = model.config.quantization_config
        if settings.quant_method == "bitsandbytes" and not quantised_modules(model):
            raise ValueError(f"nothing of {type(model).__name__} was quantised: it would be loaded in full")
        keep_4bit_layout(model)
    elif options.device_map is None:
        move_model_to_device(model, device)
    return model.eval()


def _check_weights(name, config: dict, model, report: dict) -> None:
    """transformers only warns of weights that were not in the file and stay random."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if missing := sorted(set(report["missing_keys"]) - tied):
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[:3]}; "
            f"it was saved from {saved_class(config)}"
        )
    if strangers := sorted(report["unexpected_keys"]):
        log.warning("%s: %d weights are not used, such as %s", name, len(strangers), strangers[:3])


# --- saving ---


def save_model(model: nn.Module, save_path: str | os.PathLike, tokenizer=None, processor=None) -> Path:
    """Weights, config, tokenizer and processor into a folder, which is made; gives the folder back.

    Written aside and put in place file by file. Weights of the same kind that lie there from an earlier model
    are removed, other files stay.
    """
    folder = Path(save_path).resolve()
    aside = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(aside)
        else:
            load_target("safetensors.torch:save_model")(model, str(aside / WEIGHTS))
        for part in (tokenizer, processor):
            if part is not None:
                part.save_pretrained(aside)
        _put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Path(save_path)


def _put_in_place(aside: Path, folder: Path) -> None:
    files = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
    for patterns in WEIGHT_FILES.values():
        if any(fnmatch(str(file), pattern) for file in files for pattern in patterns):
            stale = {old for pattern in patterns for old in folder.glob(pattern)}
            for old in stale - {folder / file for file in files}:
                old.unlink()
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / file, folder / file)


def load_model_from_path(
    model_path: str | os.PathLike,
    model_class: Callable[..., nn.Module] | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """The model that `save_model` wrote, in eval mode. FileNotFoundError where there is none.

    `model_class`: without it, the class that the checkpoint names. A class of transformers comes as the zoo's
    own where the registry has one of that name. For a module that is not of transformers, anything that
    makes one when it is called; its weights must all be in the file.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; save_model writes one")
    device = to_device(device)
    if model_class is not None and not hasattr(model_class, "from_pretrained"):
        return _fill(model_class(), folder, device)
    if model_class is None and (folder / WEIGHTS).is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds weights of a module of your own: give its model_class")
    options = LoadOptions(local_files_only=True)
    config = read_config(folder, options)
    family = family_named(config)
    name = saved_class(config) if model_class is None else model_class.__name__
    if FAMILIES[family].reader and model_class is None:
        return load_target(FAMILIES[family].reader)(str(folder), device=device).model
    target = class_named(name, family, model_class)
    return read_model(target, folder, config, FAMILIES[family], options, device)


def class_named(name: str | None, family: str = AUTO, given: type | None = None) -> str | type:
    """The class of a name: the registry's if it has one, else the given one or that of transformers."""
    for target in FAMILIES[family].tasks.values():
        if target.rpartition(":")[2] == name and (given is None or issubclass(load_target(target), given)):
            return target
    if given is not None:
        return given
    import transformers

    found = getattr(transformers, name or "", None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"the checkpoint was saved from {name!r}, which transformers does not have")
    return found


def _fill(module: nn.Module, folder: Path, device: torch.device) -> nn.Module:
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}")
    load_target("safetensors.torch:load_model")(module, str(folder / WEIGHTS), strict=True)
    return move_model_to_device(module, device).eval()
