"""Masks of fakes: the pixels that were forged, and the files that name none.

A mask is read by its brightest channel, so that its colour says nothing; what is transparent is dark. Forged
is at least half of white, so that a small mask stays small and the noise of a JPEG stays dark. A file of two
levels, black and any other, is forged where it is not black: masks of 0 and 1, one label of a palette.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from quicksviewer.qwen_vl_finetune.pipelines.annotations import Annotation, read_annotations
from quicksviewer.utils.image import opened, to_rgb
from quicksviewer.utils.media import IMAGE_KINDS, MediaLimits
from quicksviewer.utils.media_gate import open_medium
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

BRIGHT = 128
"""Level from which a pixel is forged, where there are more than two."""
SHOWN = 3
"""Files that a warning names."""
READERS = 8
"""Masks that are looked at at a time."""


def read_mask(path: Path | str) -> np.ndarray | None:
    """Forged pixels of a mask file: (H, W) bool; None where it has none, which says nothing about a fake.
    Raises MediaError."""
    return forged_pixels(mask_levels(path))


def mask_levels(path: Path | str) -> np.ndarray:
    """The brightest channel of each pixel: (H, W) uint8."""
    limits = MediaLimits()
    with open_medium(path, IMAGE_KINDS, limits) as medium, opened(medium, limits) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        return np.asarray(to_rgb(image)).max(axis=2)


def forged_pixels(levels_HW: np.ndarray) -> np.ndarray | None:
    """(H, W) bool; None where nothing is forged."""
    is_two_levels = len(found := np.unique(levels_HW)) == 2 and found[0] == 0
    forged = levels_HW > 0 if is_two_levels else levels_HW >= BRIGHT
    return forged if forged.any() else None


def read_with_masks(path: Path, data_root: Path) -> list[Annotation]:
    """As read_annotations, and every mask is looked at: one in which nothing is forged becomes unknown, and a
    warning counts those. Also raises MediaError for a mask that cannot be read."""
    rows = read_annotations(path, data_root)
    with ThreadPoolExecutor(READERS) as pool:
        levels = list(pool.map(_level_of_dark, rows))
    _tell_dark(path, [(row, level) for row, level in zip(rows, levels, strict=True) if level is not None])
    return [
        row if level is None else replace(row, mask=None) for row, level in zip(rows, levels, strict=True)
    ]


def _tell_dark(path: Path, dark: Sequence[tuple[Annotation, int]]) -> None:
    if dark:
        shown = ", ".join(f"{row.mask.path} (largest level {level})" for row, level in dark[:SHOWN])
        logger.warning(
            "%s: %d masks of fakes have no forged pixel: expected levels from %d on, or black and one other "
            "level; these fakes teach and test the class alone: %s", path, len(dark), BRIGHT, shown,
        )  # fmt: skip


def _level_of_dark(row: Annotation) -> int | None:
    """The largest level of a mask in which nothing is forged; None for others, and where there is no mask."""
    if row.mask is None:
        return None
    levels = mask_levels(row.mask)
    return int(levels.max(initial=0)) if forged_pixels(levels) is None else None
