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

VERSION = 1
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
        if self.family not in LANGUAGE_MODELS or self.tower not in TOWERS:
            raise ValueError(f"unknown family {self.family!r} or tower {self.tower!r}")

    @property
    def root(self) -> Path:
        return Path(self.folder)

    def stamp(self, *parts: str) -> str:
        """Digest of the settings that a product depends on."""
        plain = asdict(self)
        chosen = {part: plain[part] for part in parts} | {"version": VERSION}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


PRODUCTS = {
    "data": ("world", "corpus"),
    "tower": ("world", "pretrain", "tower", "tower_shape"),
    "lm": ("world", "corpus", "pretrain", "family", "template", "lm_shape"),
}
"""Product (a folder under the root) -> the settings it depends on."""


def is_made(config: SyntheticConfig, product: str) -> bool:
    path = config.root / product / "STAMP"
    return path.is_file() and path.read_text() == config.stamp(*PRODUCTS[product])


def begin(config: SyntheticConfig, product: str) -> Path:
    """An empty folder for a product."""
    folder = config.root / product
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def finish(config: SyntheticConfig, product: str) -> None:
    """Say that a product is complete. Written last."""
    (config.root / product / "STAMP").write_text(config.stamp(*PRODUCTS[product]))
