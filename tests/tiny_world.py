"""Shared by tests: a small synthetic corpus, tiny checkpoints of all backbones, batches made from them."""

import dataclasses
from pathlib import Path

import torch

from quicksviewer.conversation import Turn
from quicksviewer.model.builder import new_model
from quicksviewer.synthetic.corpus import CorpusConfig, corpus_text, write_corpus
from quicksviewer.synthetic.tiny import make_language_model, make_tower
from quicksviewer.synthetic.world import WorldConfig

WORLD = WorldConfig(max_seconds=12, max_events=4)
CORPUS = CorpusConfig(videos=6, held_out=2, images=6, texts=4, questions=4)
BACKBONES = ("qwen2", "llama", "minimind")
TOWERS = ("siglip", "clip")
MM = {
    "cubing": {"frames_per_cube": 3},
    "resampler": {"queries": 4, "head_width": 32},
    "layout": {"time_digits": 2, "time_decimals": 0},
}
SHAPE = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
OWN_SHAPE = {
    "minimind": dict(
        use_moe=True,
        n_routed_experts=4,
        num_experts_per_token=2,
        n_shared_experts=1,
        aux_loss_alpha=0.01,
        norm_topk_prob=True,
    )
}
"""MiniMind has experts here; without them it is a LLaMA, and tests/minimind knows it."""


def shape_of(family: str) -> dict:
    """What a tiny language model of a family is made of."""
    return {**SHAPE, **OWN_SHAPE.get(family, {})}


def make_folder(root: Path) -> Path:
    """data/, one folder for each of BACKBONES, siglip/, clip/ under one folder."""
    write_corpus(root / "data", WORLD, CORPUS)
    texts = corpus_text(WORLD, CORPUS, count=60)
    for family in BACKBONES:
        make_language_model(root / family, family, texts, **shape_of(family))
    for tower in TOWERS:
        make_tower(root / tower, tower, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    return root


def fresh(root: Path, backbone: str = "qwen2", tower: str = "siglip", template: str = "plain", **mm):
    """A fresh video model; keyword arguments are sections of the mm config."""
    torch.manual_seed(0)
    overrides = {section: {**MM.get(section, {}), **mm.get(section, {})} for section in {*MM, *mm}}
    return new_model(
        str(root / backbone), str(root / tower), overrides, template, {"max_frames": 16}, dtype=torch.float32
    )


def video_row(loaded, path, text: str = "What happens when?", answer: str = "00 red circle left"):
    video = loaded.processor.load_video(path)
    turns = [Turn("user", f"<video>\n{text}"), Turn("assistant", answer)]
    return loaded.processor.encode_turns(turns, [video])


def text_row(loaded, text: str = "Which is first?", answer: str = "red"):
    return loaded.processor.encode_turns([Turn("user", text), Turn("assistant", answer)])


def videos(root: Path) -> list[Path]:
    return sorted((root / "data/videos/train").glob("*.mp4"))


def with_template(loaded, template: str):
    return dataclasses.replace(
        loaded,
        processor=type(loaded.processor)(
            loaded.tokenizer, loaded.processor.mm, template, loaded.processor.media
        ),
    )
