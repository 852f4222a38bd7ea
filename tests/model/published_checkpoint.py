"""Writes a model of ours as the published code would have saved it: names, tokens, config; for tests."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from quicksviewer.constants import MODEL_TOKENS
from quicksviewer.model.published import PUBLISHED_TOKENS

TYPES = {"qwen2": "quicksviewer_qwen", "llama": "quicksviewer_llama", "minimind": "quicksviewer_minimind"}
LIKE_PUBLISHED = {
    "tower": {"post_layernorm": False},
    "cubing": {"frames_per_cube": 5.0, "energy_features": False, "energy_prior": 0.0},
    "resampler": {"time_unit": "frames"},
    "thumbnail": {"pooling": "runs"},
    "layout": {"time_style": "plain", "time_digits": 5, "time_decimals": 1},
}
"""Sections of a vision config with which a model of ours behaves as the published one."""
THEIR_NAMES = {
    "vision_tower.vision.": "model.vision_tower.vision_tower.vision_model.",
    "thumbnail.thumbnail_fn.": "model.cubing.thumbnail_fn.",
    "cubing.": "model.cubing.",
    "vision_resampler.": "model.vision_resampler.",
}


def their_name(name: str) -> str:
    for ours, theirs in THEIR_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def their_tensors(model) -> dict[str, torch.Tensor]:
    """All weights by published names, the tokens as further rows of the language model's tables."""
    tensors = {their_name(name): tensor.clone() for name, tensor in model.state_dict().items()}
    own = dict(zip(MODEL_TOKENS, tensors.pop("mm_tokens.weight"), strict=True))
    count = model.mm_config.first_special_id  # the published code resizes to the tokenizer's length
    words, head = (tensors[name][:count] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    rows = torch.stack([own[token] for token in PUBLISHED_TOKENS])
    tensors["model.embed_tokens.weight"] = torch.cat([words, rows])
    tensors["lm_head.weight"] = torch.cat([head, head.mean(dim=0).expand(len(rows), -1)])
    tower = "model.vision_tower.vision_tower.vision_model."
    width = model.mm_config.tower.hidden_size
    unused = {f"{tower}post_layernorm.weight": width, f"{tower}head.probe": width}
    return tensors | {name: torch.ones(size) for name, size in unused.items()}


def their_config(model, backbone: str, **changes) -> dict:
    mm, ours = model.mm_config, model.config.to_dict()
    grid = mm.tower.out_grid
    return {
        **{key: value for key, value in ours.items() if key != "mm"},
        "model_type": TYPES[backbone],
        "vocab_size": mm.first_special_id + len(PUBLISHED_TOKENS),
        "dtype": "float32",
        "mm_vision_tower": "/data/siglip-so400m-patch14-384",
        "mm_cubing": "momentum",
        "mm_resampler_type": "qformer",
        "mm_projector_type": "identity",
        "num_queries": mm.resampler.queries,
        "num_heads": mm.resampler.num_heads(ours["hidden_size"]),
        "embed_dim": ours["hidden_size"],
        "max_size": [300, grid, grid],
        "cubing_vit_forward_n_layers": -1,
        **changes,
    }


def publish(model, backbone: str, tokenizer: Path, folder: Path, write=save_file, **changes) -> Path:
    """A folder as published. `write(tensors, path)` writes the weights, into model.safetensors by default."""
    folder.mkdir()
    write(their_tensors(model), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(their_config(model, backbone, **changes)))
    theirs = AutoTokenizer.from_pretrained(tokenizer)
    theirs.add_tokens(list(PUBLISHED_TOKENS), special_tokens=True)
    theirs.save_pretrained(folder)
    return folder
