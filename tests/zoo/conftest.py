"""Tiny checkpoints of every family and task of the zoo, and pictures, made once."""

import numpy as np
import pytest
import torch
from PIL import Image

from quicksviewer.synthetic.tiny_vlm import MAKERS, make_vlm

TEXTS = [
    *("what color is it?", "is there a circle in the picture?", "a picture of", "red", "blue", "green"),
    *("a red circle", "a blue square", "yes", "no", "which shape is on the left?"),
]


def make_checkpoint(family: str, task: str, folder, tiny) -> None:
    """A checkpoint folder with weights, tokenizer and processor."""
    if family in MAKERS:
        make_vlm(folder, family, TEXTS * 4, **({"task": task} if family == "blip" else {}))
    elif family == "minimind_vlm":
        _make_minimind(folder, tiny)
    else:
        from tiny_world import fresh

        loaded = fresh(tiny)
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)


def _make_minimind(folder, tiny) -> None:
    from quicksviewer.minimind import MiniMindVLM, preset
    from quicksviewer.synthetic.tiny import qwen2_tokenizer

    tokenizer = qwen2_tokenizer(TEXTS * 4)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|picture|>"]})
    model = MiniMindVLM(preset("debug", vocab_size=len(tokenizer)), str(tiny / "clip"))
    patches = len(model.config.image_ids)
    model.config.place_pictures(tokenizer.convert_tokens_to_ids("<|picture|>"), "<|picture|>", patches)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tiny):
    """(family, task) -> folder of a tiny checkpoint; each is made once."""
    root, made = tmp_path_factory.mktemp("zoo"), {}

    def folder_of(family: str, task: str):
        key = (family, task if family == "blip" else "")
        if key not in made:
            made[key] = root / "-".join(filter(None, key))
            torch.manual_seed(0)
            make_checkpoint(family, task, made[key], tiny)
        return made[key]

    return folder_of


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Paths of three pictures that differ."""
    root, chance = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for number, colour in enumerate(((200, 30, 30), (30, 30, 200), (30, 200, 30))):
        pixels = np.full((60, 80, 3), colour, dtype=np.uint8)
        pixels[10:40, 20:60] = chance.integers(0, 255, 3)
        paths.append(root / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def loaded(checkpoint):
    """(family, task, **options) -> what load_model gives for its tiny checkpoint, on the CPU."""
    from quicksviewer.zoo import load_model

    def load(family: str, task: str, **options):
        return load_model(checkpoint(family, task), task=task, device="cpu", **options)

    return load
