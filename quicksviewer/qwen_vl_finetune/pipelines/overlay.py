"""A picture, its mask and the heat map that a model sees, side by side, as PNG."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from quicksviewer.qwen_vl_finetune.pipelines.annotations import Annotation
from quicksviewer.qwen_vl_finetune.pipelines.letterbox import letterbox
from quicksviewer.utils.image import load_image

GAP, LINE = 6, 18
PAPER, INK = (24, 24, 28), (235, 235, 235)
TINT = 0.6
"""How much of the picture a mask or a full heat covers."""
MASK_COLOUR, HEAT_COLOUR = (80, 220, 120), (255, 60, 40)


def draw(
    row: Annotation, mask_SS: np.ndarray | None, heat_SS: np.ndarray, inside_SS: np.ndarray, caption: str
) -> Image.Image:
    """Three squares of S pixels, the bars of the letterbox left dark, and a line of text below."""
    size = len(heat_SS)
    square, _ = letterbox(load_image(row.image), size)
    pixels = np.asarray(square, np.float64) * inside_SS[..., None]
    mask = np.zeros((size, size)) if mask_SS is None else TINT * mask_SS
    panels = (
        pixels,
        _tinted(pixels, mask, MASK_COLOUR),
        _tinted(pixels, TINT * heat_SS * inside_SS, HEAT_COLOUR),
    )
    sheet = Image.new("RGB", (3 * size + 4 * GAP, size + 3 * GAP + LINE), PAPER)
    for place, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel.astype(np.uint8)), (GAP + place * (size + GAP), GAP))
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, size + 2 * GAP), caption, INK, ImageFont.load_default(size=13))
    return sheet


def _tinted(pixels: np.ndarray, amount: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return pixels * (1 - amount[..., None]) + np.array(colour) * amount[..., None]


class OverlayFolder:
    """The first `most` fakes and as many real pictures as come with them; older drawings are removed
    first."""

    def __init__(self, folder: Path, most: int):
        self.folder, self.left = folder, {1: most - most // 2, 0: most // 2}
        for old in self._drawings():
            old.unlink()

    def _drawings(self) -> Iterator[Path]:
        return self.folder.glob("overlay_*.png")

    def add(self, number: int, row: Annotation, mask_SS, heat_SS, inside_SS, caption: str) -> None:
        if not self.left[row.label]:
            return
        self.left[row.label] -= 1
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet = draw(row, mask_SS, heat_SS, inside_SS, caption)
        sheet.save(self.folder / f"overlay_{number:05d}.png")
