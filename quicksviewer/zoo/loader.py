"""One way to load: a name, a family and a task become a model and what prepares its inputs."""

import os
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from quicksviewer.utils.registry import load_target, lookup
from quicksviewer.zoo.files import read_config, read_model
from quicksviewer.zoo.options import LoadOptions, options_from, to_device, to_dtype
from quicksviewer.zoo.registry import (
    AUTO,
    FAMILIES,
    MODEL_REGISTRY,
    Family,
    class_for,
    family_named,
    task_saved,
)


@dataclass(frozen=True)
class LoadedModel:
    """What `load_model` gives, as the keys of a dict; those that were not loaded are no keys of it."""

    model: Any
    processor: Any = None
    tokenizer: Any = None
    image_processor: Any = None

    def to_dict(self) -> dict:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


class ModelLoader:
    """Loads one checkpoint: `load()`, then `get_model()`, `get_processor()` and so on.

    model_name: a folder, or a name on the hub. model_type: a row of MODEL_REGISTRY; None or "auto" reads the
    checkpoint's config.json. task: of that row; None takes the one that the checkpoint was saved for. device:
    None takes CUDA where there is one. options: the fields of LoadOptions. Wrong ones are a ValueError here.
    """

    MODEL_REGISTRY: ClassVar[dict[str, dict[str, str]]] = MODEL_REGISTRY

    def __init__(
        self,
        model_name: str | os.PathLike,
        model_type: str | None = None,
        task: str | None = "vqa",
        device: str | torch.device | None = None,
        **options,
    ):
        self.model_name, self.model_type, self.task, self.device = model_name, model_type, task, device
        self.given = options
        self.loaded: LoadedModel | None = None
        self._check(model_type, task, device, options)

    def load(self, load_processor: bool = True, **overrides) -> dict:
        """Load and give a dict: `model`, in eval mode, and unless load_processor is False `processor`,
        `tokenizer` and `image_processor`. `overrides`: any argument of the class, for this time."""
        asked = {name: overrides.pop(name, getattr(self, name)) for name in ("model_type", "task", "device")}
        device, options = self._check(**asked, options=self.given | overrides)
        self.loaded = None
        config = read_config(self.model_name, options)
        row = FAMILIES[family := family_named(config, asked["model_type"])]
        task = asked["task"] or task_saved(config, family)
        target = class_for(family, task)
        if row.reader:
            self.loaded = self._read_whole(row, options, device, load_processor)
        else:
            model = read_model(target, self.model_name, config, row, options, device)
            self.loaded = self._with_processor(model, row, options) if load_processor else LoadedModel(model)
        return self.loaded.to_dict()

    def get_model(self):
        return self._part("model")

    def get_processor(self):
        return self._part("processor")

    def get_tokenizer(self):
        return self._part("tokenizer")

    def get_image_processor(self):
        return self._part("image_processor")

    def _part(self, name: str):
        if self.loaded is None:
            raise RuntimeError(f"{self.model_name} is not loaded yet: call load() first")
        if (found := getattr(self.loaded, name)) is None:
            raise RuntimeError(f"{self.model_name} was loaded without {name}: load(load_processor=True)")
        return found

    @staticmethod
    def _check(model_type, task, device, options) -> tuple[torch.device, LoadOptions]:
        """Refuse what can be refused before a file is read."""
        family = lookup(FAMILIES, model_type or AUTO, "model type")
        known = family.tasks if model_type not in (None, AUTO) else dict(_all_tasks())
        if task is not None:
            lookup(known, task, f"task of {model_type or AUTO}")
        built = options_from(options)
        if built.device_map is not None and device is not None:
            raise ValueError("device and device_map both say where the model lies: give one")
        return to_device(device), built

    def _with_processor(self, model, row: Family, options: LoadOptions) -> LoadedModel:
        near = {name: getattr(options, name) for name in ("revision", "cache_dir", "local_files_only")}
        near = {name: value for name, value in near.items() if value is not None}
        reader = load_target(row.processor)
        found = reader.from_pretrained(
            os.fspath(self.model_name), trust_remote_code=options.trust_remote_code, **near
        )
        tokenizer, pictures = (getattr(found, name, None) for name in ("tokenizer", "image_processor"))
        if tokenizer is None or pictures is None:
            raise ValueError(
                f"{self.model_name} has no processor of words and pictures, only a {type(found).__name__}; "
                "load_processor=False loads the model alone"
            )
        if row.after:
            load_target(row.after)(model, tokenizer)
        return LoadedModel(model, found, tokenizer, pictures)

    def _read_whole(self, row: Family, options: LoadOptions, device, load_processor: bool) -> LoadedModel:
        """A family with a reader of its own, which quantises and checks weights itself."""
        usual, unknown = LoadOptions(), ("device_map", "quantization_config", "revision", "cache_dir")
        unknown += ("trust_remote_code", "use_safetensors")
        if wrong := [name for name in unknown if getattr(options, name) != getattr(usual, name)]:
            raise ValueError(f"a model of this project is loaded without {', '.join(wrong)}")
        dtype = to_dtype(options.number_type)
        found = load_target(row.reader)(
            os.fspath(self.model_name),
            device=device,
            dtype=None if dtype == "auto" else dtype,
            load_4bit=options.load_in_4bit,
            load_8bit=options.load_in_8bit,
            attn_implementation=options.attn_implementation,
        )
        if not load_processor:
            return LoadedModel(found.model)
        return LoadedModel(found.model, found.processor, found.tokenizer, found.processor)


def _all_tasks() -> list[tuple[str, str]]:
    return [task for row in FAMILIES.values() for task in row.tasks.items()]


def load_model(
    model_name: str | os.PathLike,
    model_type: str | None = None,
    task: str | None = "vqa",
    device: str | torch.device | None = None,
    load_processor: bool = True,
    **options,
) -> dict:
    """A model by name: `ModelLoader(...).load(load_processor)`, see there."""
    return ModelLoader(model_name, model_type, task, device, **options).load(load_processor)
