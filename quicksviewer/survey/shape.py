"""The structure of the model of a run, without its weights, and where they need not exist either.

A folder that is not there is looked up by its name in configs/shapes/, which has the sizes of published
models; a stage that starts from an earlier one has the structure that the first stage gives it.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from quicksviewer.constants import MODEL_TOKENS
from quicksviewer.model.builder import BACKBONES, OURS, read_model_type, read_tower
from quicksviewer.model.config import TIME_CHARACTERS, MultimodalConfig
from quicksviewer.survey.subject import structure_of
from quicksviewer.train.args import Settings, read_recipe
from quicksviewer.train.stages import STAGES
from quicksviewer.utils.recipes import RECIPES
from quicksviewer.utils.registry import load_target, lookup

SHAPES = RECIPES.parent / "shapes"


@dataclass(frozen=True)
class Shape:
    """`target`: "module:Config", "module:Model"; `plain`: the language model's config; `mm`: of the vision
    side."""

    target: tuple[str, str]
    plain: dict
    mm: MultimodalConfig

    @property
    def depths(self) -> tuple[int, int]:
        """Layers of the language model and of the tower that are built."""
        return self.plain["num_hidden_layers"], self.mm.tower.vision.num_hidden_layers

    def model(self, depths: tuple[int, int] | None = None):
        """The model on the meta device, with so many layers of both (None: its own)."""
        llm, tower = depths or self.depths
        plain = copy.deepcopy(self.plain) | {"num_hidden_layers": llm}
        if plain.get("layer_types"):
            plain["layer_types"] = plain["layer_types"][:llm]
        mm = self.mm.to_dict()
        mm["tower"]["hf"]["num_hidden_layers"] = tower - 1 - mm["tower"]["select_layer"]
        config_class, model_class = map(load_target, self.target)
        config = config_class(**plain, mm=mm)
        with torch.device("meta"):
            return model_class(config)


def shape_of(settings: Settings) -> Shape:
    """The structure of the model that a stage trains. ValueError where nothing tells it."""
    folder = _folder(settings.model.model_name_or_path, settings)
    model_type, plain = read_model_type(folder), _config(folder)
    if model_type in OURS:
        return Shape(OURS[model_type], _cleaned(plain), MultimodalConfig.from_dict(plain["mm"]))
    tower = read_tower(_folder(settings.model.vision_tower, settings))
    rows = plain["vocab_size"]
    ids = {"first_special_id": rows - len(MODEL_TOKENS), "time_token_ids": list(range(len(TIME_CHARACTERS)))}
    sections = structure_of(settings)
    sections["tower"] = {**sections.get("tower", {}), **tower}
    target = lookup(BACKBONES, model_type, "model type")
    return Shape(target, _cleaned(plain), MultimodalConfig.from_dict({**sections, **ids}))


def _folder(path: str | None, settings: Settings) -> Path:
    """Where the config of a model lies: its folder, a published shape of its name, or what the stage before
    starts from."""
    if path is None:
        raise ValueError("the recipe names no model; give --model_name_or_path and --vision_tower")
    for place in (Path(path), SHAPES / Path(path).name):
        if (place / "config.json").is_file():
            return place
    earlier = list(STAGES)[: list(STAGES).index(settings.stage)]
    for stage in reversed(earlier):
        values, _ = read_recipe(settings.recipe, stage)
        start = str(values.get("model_name_or_path"))
        for place in (Path(start), SHAPES / Path(start).name):
            if path == settings.model.model_name_or_path and (place / "config.json").is_file():
                return place
    known = ", ".join(sorted(folder.name for folder in SHAPES.iterdir()))
    raise ValueError(f"there is no config.json in {path}, and no published shape of its name; known: {known}")


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _cleaned(plain: dict) -> dict:
    """What a config class is built from: without its own name, the vision side and the kind of weights."""
    others = {"model_type", "mm", "architectures", "dtype", "torch_dtype", "transformers_version"}
    return {key: value for key, value in plain.items() if key not in others}
