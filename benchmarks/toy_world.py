"""A small embedded world and models of chosen sizes, for benchmarks that train."""

from pathlib import Path

import torch

from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.model.builder import new_model
from quicksviewer.synthetic.corpus import CorpusConfig, corpus_text, write_corpus
from quicksviewer.synthetic.tiny import make_language_model, make_tower
from quicksviewer.synthetic.world import WorldConfig

WORLD = WorldConfig(max_seconds=24, max_events=4)
CORPUS = CorpusConfig(videos=16, held_out=1, images=16, texts=8, questions=4)
FILES = ("captions", "questions", "images", "texts")
REGISTRY = """
{name}: {{path: {root}/{name}.jsonl, media_root: {root}}}
"""


def make_data(root: Path) -> Path:
    """Videos, pictures and conversations under a folder; a registry of them beside it."""
    write_corpus(root, WORLD, CORPUS)
    registry = root / "registry.yaml"
    registry.write_text("".join(REGISTRY.format(name=name, root=root) for name in FILES))
    return root


def mixture(root: Path, names: str) -> Mixture:
    """Data sets of a folder by their names, with commas."""
    mix = root / f"mix_{names.replace(',', '_')}.yaml"
    mix.write_text("datasets:\n" + "".join(f"  - {{name: {name}}}\n" for name in names.split(",")))
    return Mixture(parse_mixture(str(mix), str(root / "registry.yaml")))


def make_model(folder: Path, lm: dict, tower: dict, seed: int = 0):
    """A fresh video model, loaded from folders as a run does."""
    if not (folder / "lm").is_dir():
        make_language_model(folder / "lm", "qwen2", corpus_text(WORLD, CORPUS, count=60), **lm)
        make_tower(folder / "tower", "siglip", **tower)
    mm = {
        "cubing": {"frames_per_cube": 3, "noise_start": 0.0, "noise_end": 0.0},
        "resampler": {"queries": 4, "head_width": 32},
        "layout": {"time_digits": 2, "time_decimals": 0},
    }
    torch.manual_seed(seed)
    paths = str(folder / "lm"), str(folder / "tower")
    return new_model(*paths, mm, "plain", {"max_frames": 24}, dtype=torch.float32)
