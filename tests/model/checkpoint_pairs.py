"""Small checkpoints of given tensors, and what lies in a folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from quicksviewer.model import raw_weights
from quicksviewer.utils.manifest import MANIFEST


def write(folder: Path, shards: list[dict]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"dtype": "bfloat16"}')
    if len(shards) == 1:
        save_file(shards[0], folder / raw_weights.SINGLE)
        return
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (folder / raw_weights.INDEX).write_text(json.dumps({"weight_map": places}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = [load_file(path) for path in raw_weights.weight_files(folder)]
    return {name: weight for part in found for name, weight in part.items()}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
