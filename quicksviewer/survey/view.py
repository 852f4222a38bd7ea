"""One rendered row as people look at it: pieces of text, which of them is learned, and frames.

Letters: N frames, S side of a picture in pixels.
"""

import io
from dataclasses import dataclass
from itertools import groupby

from PIL import Image

from quicksviewer.constants import IGNORE_INDEX, MODEL_TOKENS

FRAMES = 8
"""Frames that are shown of a row."""


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind: "text", "learned", or "medium" (the model's own tokens)."""

    kind: str
    text: str
    tokens: int


@dataclass(frozen=True)
class View:
    """`frames`: JPEG bytes of what the tower sees and the second of each, `of` frames in all."""

    pieces: tuple[Piece, ...]
    frames: tuple[tuple[bytes, float], ...]
    of: int


def view_of(row: dict, processor) -> View:
    """A row of the data set, as its processor rendered it."""
    first = processor.layout.config.first_special_id
    own = range(first, first + len(MODEL_TOKENS))

    def kind(pair: tuple[int, int]) -> str:
        token, label = pair
        if label != IGNORE_INDEX:
            return "learned"
        return "medium" if token in own else "text"

    pieces = []
    for name, run in groupby(zip(row["input_ids"], row["labels"], strict=True), kind):
        ids = [token for token, _ in run]
        text = "" if name == "medium" else processor.tokenizer.decode(ids)
        pieces.append(Piece(name, text, len(ids)))
    return View(tuple(pieces), tuple(_frames(row)), len(row.get("frame_times", ())))


def _frames(row: dict):
    if "pixel_values" not in row:
        return
    count = len(row["pixel_values"])
    shown = min(FRAMES, count)
    for place in [int((i + 0.5) * count / shown) for i in range(shown)]:
        picture = Image.fromarray(row["pixel_values"][place].permute(1, 2, 0).contiguous().numpy())
        held = io.BytesIO()
        picture.save(held, "JPEG", quality=80)
        yield held.getvalue(), float(row["frame_times"][place])
