"""Rows of a data set and questions of a user -> what MiniMindVLM reads: one road for training and for asking.

A picture's mark in a text (`<image>`) is a token of the tokenizer; in ids it stands as often as the picture
has patches. Labels cover what the assistant says, as the template's spans tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quicksviewer.constants import IGNORE_INDEX, IMAGE_MARK
from quicksviewer.conversation import TEMPLATES, Turn, encode, render, stop_ids
from quicksviewer.utils.batching import batch_rows
from quicksviewer.utils.config import load_mapping, save_json
from quicksviewer.utils.image import as_rgb
from quicksviewer.utils.media import Isolation, MediaLimits
from quicksviewer.utils.registry import load_target, lookup

FILE = "minimind_processor.json"


@dataclass(frozen=True)
class PictureConfig:
    """Who decodes pictures, and where."""

    decoder: str = "pillow"
    isolation: Isolation = "process"

    def limits(self) -> MediaLimits:
        """How pictures are opened."""
        return MediaLimits(isolation=self.isolation)


@dataclass(frozen=True)
class Picture:
    """Pixels of one picture, normalised: (1, 3, S, S)."""

    pixels: Tensor


def add_image_mark(model, tokenizer) -> None:
    """Let the mark of a picture be a token of the tokenizer and the model's placeholder; the embedding grows
    where it has no row for it."""
    if IMAGE_MARK not in tokenizer.get_vocab():
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [IMAGE_MARK]}, replace_extra_special_tokens=False
        )
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    if token_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.params.place_pictures(token_id, IMAGE_MARK, len(model.params.image_ids))


class MiniMindProcessor:
    """Tokenizer, template, and what makes pixels of pictures."""

    def __init__(self, tokenizer, image_processor, patches: int, template: str = "plain"):
        """`patches`: tokens of a picture, `len(config.image_ids)`."""
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.patches, self.template = patches, template
        self.conversation = lookup(TEMPLATES, template, "conversation template")
        self.media_config = PictureConfig()
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE_MARK)

    @classmethod
    def of(cls, model, tokenizer, template: str) -> "MiniMindProcessor":
        """For a model with a vision tower and a tokenizer that knows the mark (see `add_image_mark`)."""
        return cls(tokenizer, model.processor, len(model.params.image_ids), template)

    def to_dict(self) -> dict:
        """The settings that decide what becomes of a row."""
        images = self.image_processor.to_dict()
        return {"patches": self.patches, "template": self.template, "images": images}

    def save_pretrained(self, folder, **_) -> None:
        """The tokenizer and image processor as transformers writes them, the rest in a small file."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        save_json(Path(folder) / FILE, {"patches": self.patches, "template": self.template})

    @classmethod
    def from_pretrained(cls, folder) -> "MiniMindProcessor":
        """ValueError for a folder that `save_pretrained` has not written."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no {FILE}: no MiniMindVLM was trained there")
        tokenizer = load_target("transformers:AutoTokenizer").from_pretrained(folder, local_files_only=True)
        pictures = load_target("transformers:AutoImageProcessor").from_pretrained(
            folder, local_files_only=True
        )
        return cls(tokenizer, pictures, **load_mapping(path))

    @property
    def pad_id(self) -> int:
        """Padding is masked everywhere, so any id will do where the tokenizer names none."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    @property
    def stop_ids(self) -> list[int]:
        return stop_ids(self.conversation, self.tokenizer)

    def load(self, mark: str, source: Any, *_clip) -> Picture:
        """A picture from a path, bytes or a PIL image. MediaError if it is none, ValueError for a video."""
        if mark != IMAGE_MARK:
            raise ValueError("MiniMindVLM reads pictures, no videos")
        picture = as_rgb(source, self.media_config.limits())
        return Picture(self.image_processor(images=picture, return_tensors="pt")["pixel_values"])

    def encode_turns(
        self, turns: Sequence[Turn], media: Sequence[Picture] = (), generation: bool = False
    ) -> dict:
        """One conversation as a row: input_ids, labels, and its pictures. ValueError where marks and pictures
        differ in number."""
        ids, learn = encode(self.tokenizer, render(self.conversation, list(turns), generation))
        if (marks := ids.count(self.image_id)) != len(media):
            raise ValueError(f"the text has {marks} marks {IMAGE_MARK}, but there are {len(media)} pictures")
        row: dict[str, Any] = {"input_ids": [], "labels": []}
        for token, learned in zip(ids, learn, strict=True):
            times = self.patches if token == self.image_id else 1
            row["input_ids"] += [token] * times
            row["labels"] += [token if learned and times == 1 else IGNORE_INDEX] * times
        if media:
            row |= {
                "pixel_values": torch.cat([picture.pixels for picture in media]),
                "frame_times": torch.zeros(len(media)),
                "medium_frames": [1] * len(media),
                "medium_is_video": [False] * len(media),
            }
        return row

    def batch(self, rows: list[dict]) -> dict[str, Tensor]:
        """Rows of `encode_turns` for generation: padded on the left, without labels. Every row has as many
        pictures as every other; pixel_values (B, N, 3, S, S)."""
        batch = batch_rows([{"input_ids": row["input_ids"]} for row in rows], self.pad_id, "left")
        if "pixel_values" in rows[0]:
            batch["pixel_values"] = torch.stack([row["pixel_values"] for row in rows])
        return batch

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of generated ids (B, T), up to where each ends."""
        texts = []
        for row in ids.tolist():
            end = next((place for place, token in enumerate(row) if token in self.stop_ids), len(row))
            texts.append(self.tokenizer.decode(row[:end], skip_special_tokens=True).strip())
        return texts

    def __repr__(self) -> str:
        return f"MiniMindProcessor(patches={self.patches}, template={self.template!r})"
