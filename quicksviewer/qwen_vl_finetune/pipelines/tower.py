"""The vision tower of a Qwen2.5-VL checkpoint alone, without the weights of the language model.

Task 1 needs nothing else for training: of 7B, a tenth of the memory. Its layers are called as in the whole
model, so that adapters trained here fit there.
"""

import os
from contextlib import contextmanager

import torch
from torch import nn

from quicksviewer.utils.registry import load_target

OPTIONS = "quicksviewer.zoo.options:LoadOptions"
TOWER_KEYS = {r"^(model\.)?visual\.": ""}
"""Names of the tower's weights in checkpoints, older and newer -> in the tower itself."""


class TowerOnly(nn.Module):
    """`model.visual`, and nothing else of the whole model."""

    def __init__(self, tower: nn.Module, name: str):
        super().__init__()
        self.model = nn.Module()
        self.model.visual = tower
        self.name_or_path = name
        self.config = tower.config


def load_tower(name: str | os.PathLike, dtype: str, device: str | torch.device | None = None) -> TowerOnly:
    """The tower of a folder or a name on the hub, frozen, in eval mode. ValueError where weights are
    missing."""
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel as Tower,
    )

    said = load_target("quicksviewer.zoo.files:read_config")(name, load_target(OPTIONS)())
    if said.get("model_type") != "qwen2_5_vl":
        raise ValueError(f"{name} is a {said.get('model_type')}, expected a qwen2_5_vl")
    config = Qwen2_5_VLConfig.from_dict(said)
    with _unreported():
        tower, report = Tower.from_pretrained(
            name,
            config=config.vision_config,
            key_mapping=TOWER_KEYS,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights of its tower, such as {missing[:3]}")
    tower.requires_grad_(False).eval()
    return TowerOnly(tower, os.fspath(name)).to(best_device(device))


@contextmanager
def _unreported():
    """Inside, transformers does not list the weights of the language model as unexpected."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_processor(name: str | os.PathLike):
    """Image processor, tokenizer and chat template of a checkpoint; needs no torchvision."""
    kind = load_target("quicksviewer.zoo.qwen2_5_vl:Qwen2_5_VLPictureProcessor")
    return kind.from_pretrained(name, trust_remote_code=False)


def best_device(device: str | torch.device | None = None) -> torch.device:
    """The one that is asked for, or CUDA where there is one."""
    return load_target("quicksviewer.zoo.options:to_device")(device)


def tower_of(model: nn.Module) -> nn.Module:
    """The vision tower of a whole model or a TowerOnly, also under PEFT's wrapping."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.model.visual
