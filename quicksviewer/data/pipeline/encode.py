"""From an example to what a model is given: token ids and pixels, with the processor of its checkpoint.

Letters: B rows, T tokens. Pixels are float32 (3, S, S), as the image processor makes them.
"""

import base64
import binascii
import os
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from quicksviewer.data.pipeline.config import PipelineConfig
from quicksviewer.data.pipeline.tasks import Example
from quicksviewer.data.pipeline.transforms import IMAGE_STEPS, TEXT_STEPS, apply_steps
from quicksviewer.data.preprocess import SampleError
from quicksviewer.utils.image import load_image
from quicksviewer.utils.media import MediaError
from quicksviewer.utils.media_gate import RootedPath

BASE64 = re.compile(r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk)[A-Za-z0-9+/\s]{128,}={0,2}\s*")
"""A picture as base64: its first letters are those of PNG, JPEG, GIF, WEBP or BMP."""

UNLIMITED = 10**9
"""A tokenizer that says so many tokens or more (transformers writes 10**30) has no limit."""


def open_image(reference: Any, folder: str, root: str | None) -> Image.Image:
    """The RGB picture that a row names: a path, its bytes (also as {"bytes": ..., "path": ...}), a data URL,
    base64. MediaError where it is none; an address is none, nothing is fetched.

    `folder`: where relative paths start without a `root`, which no path may leave.
    """
    if isinstance(reference, dict):
        reference = reference.get("bytes") or reference.get("path")
    if isinstance(reference, bytes):
        return load_image(reference)
    if not isinstance(reference, str) or not reference:
        raise MediaError(repr(reference)[:60], "is no picture: expected a path, bytes, a data URL or base64")
    if BASE64.fullmatch(reference):
        try:
            return load_image(base64.b64decode(re.sub(r"\s", "", reference), validate=True))
        except binascii.Error as error:
            raise MediaError(reference[:20] + "...", f"is not base64: {error}") from error
    if reference.startswith("data:"):
        return load_image(reference)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", reference):
        raise MediaError(reference, "is an address; nothing is fetched: store the picture and name its path")
    if root is None and os.path.isabs(reference):
        return load_image(reference)
    return load_image(RootedPath(folder if root is None else root, reference))


@dataclass
class ImageCache:
    """Processed pictures by their path, up to a number of bytes; what does not fit is not kept."""

    max_bytes: int
    kept: dict[str, Tensor] = field(default_factory=dict)
    num_bytes: int = 0

    def keep(self, key: str, pixels: Tensor) -> None:
        size = pixels.numel() * pixels.element_size()
        if key not in self.kept and self.num_bytes + size <= self.max_bytes:
            self.kept[key], self.num_bytes = pixels, self.num_bytes + size


class Encoder:
    """Examples of a pipeline as rows of numbers.

    decoder_start: the id with which this model's decoder begins to write, if it is known. Targets then begin
    with it, and batches have the decoder's inputs.
    """

    def __init__(self, config: PipelineConfig, tokenizer, image_processor, decoder_start: int | None = None):
        self.config, self.tokenizer, self.image_processor = config, tokenizer, image_processor
        self.decoder_start = decoder_start
        options = config.optimization
        self.cache = ImageCache(options.cache_mb * 2**20) if options.cache_images else None
        section = getattr(config, config.task_type)
        lengths = {"vqa": ("max_question_length", "max_answer_length")}
        lengths |= {"image_captioning": (None, "max_caption_length")}
        lengths |= {"image_text_retrieval": ("max_text_length", None)}
        own = tokenizer.model_max_length if tokenizer.model_max_length < UNLIMITED else None
        self.max_text, self.max_target = (
            (getattr(section, name) if name else None) or config.tokenizer.max_length or own
            for name in lengths[config.task_type]
        )
        """Most tokens of a text and of a target, or None."""

    def __call__(self, example: Example, folder: str) -> dict[str, Any]:
        """pixel_values, and of input_ids, labels (lists of ids) and label (0 or 1) what the task has;
        raw_image where it is asked for. SampleError, with the row's place, where that cannot be."""
        row: dict[str, Any] = {}
        if example.text is not None:
            row["input_ids"] = self._ids(example.text, self.max_text, example.where)
        if example.target is not None:
            row["labels"] = self._target(example)
        if example.label is not None:
            row["label"] = example.label
        try:
            return row | self._picture(example.image, folder)
        except (MediaError, ValueError) as error:
            raise SampleError(example.where, str(error)) from error

    def _ids(self, text: str, limit: int | None, where: str) -> list[int]:
        text = apply_steps(text, self.config.preprocessing.text, TEXT_STEPS)
        ids = self.tokenizer(text)["input_ids"]
        if limit is not None and len(ids) > limit:
            if not self.config.tokenizer.truncation:
                raise SampleError(where, f"{len(ids)} tokens exceed the limit of {limit}: {text[:60]!r}")
            ids = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return ids

    def _target(self, example: Example) -> list[int]:
        ids = self._ids(example.target, self.max_target, example.where)
        if self.decoder_start is None:
            return ids
        has_start = ids[:1] in ([self.tokenizer.cls_token_id], [self.decoder_start])
        return [self.decoder_start, *(ids[1:] if has_start else ids)]

    def _picture(self, reference: Any, folder: str) -> dict[str, Any]:
        """pixel_values, and raw_image where the pipeline returns it."""
        root, returns_raw = self.config.image.root_dir, self.config.special.return_raw_image
        key = f"{root or folder}\n{reference}" if isinstance(reference, str) else None
        if self.cache is not None and not returns_raw and key in self.cache.kept:
            return {"pixel_values": self.cache.kept[key]}
        image = open_image(reference, folder, root)
        image = apply_steps(image, self.config.preprocessing.image, IMAGE_STEPS)
        pixels = self.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        pixels = torch.as_tensor(pixels, dtype=torch.float32)
        if self.cache is not None and key is not None:
            self.cache.keep(key, pixels)
        return {"pixel_values": pixels} | ({"raw_image": image} if returns_raw else {})
