"""A picture of any shape on a square: scaled to fit, centred, bars around it.

Picture and mask take the same road, so that a pixel of one is the same place as that of the other.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

PAD = 128
"""Grey level of the bars."""
HALF = 0.5 - 1e-4
"""Share from which a pixel is forged, less what rounding may take."""
SHAPE_TOLERANCE = 0.02
"""By how much the proportions of a mask may differ from its picture's, rounding included."""


class Box(NamedTuple):
    """Where the picture lies on the square, in pixels."""

    left: int
    top: int
    width: int
    height: int

    def inside(self, size: int) -> np.ndarray:
        """True where the picture is: (size, size) bool."""
        found = np.zeros((size, size), bool)
        found[self.top : self.top + self.height, self.left : self.left + self.width] = True
        return found


def box_of(width: int, height: int, size: int) -> Box:
    """Where a picture of that size goes on a square of `size` pixels."""
    scale = size / max(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    return Box((size - wide) // 2, (size - high) // 2, wide, high)


def letterbox(picture: Image.Image, size: int) -> tuple[Image.Image, Box]:
    """An RGB picture on a grey square, and where it is."""
    box = box_of(*picture.size, size)
    square = Image.new("RGB", (size, size), (PAD, PAD, PAD))
    square.paste(picture.resize((box.width, box.height), Image.Resampling.BICUBIC), (box.left, box.top))
    return square, box


def letterbox_mask(mask: np.ndarray, picture_size: tuple[int, int], size: int) -> np.ndarray:
    """A bool mask (H, W) on the square of a picture of `picture_size` (width, height): (size, size) bool.

    A pixel is forged if at least half of what it stands for is; where that is none, as of a thin stroke, if
    at least half as much of it is forged as of any. ValueError for a mask of another shape.
    """
    (height, width), (wide, high) = mask.shape, picture_size
    if abs(width * high / (height * wide) - 1) > SHAPE_TOLERANCE:
        raise ValueError(f"the mask is {width} x {height}, its picture {wide} x {high}: another shape")
    box = box_of(wide, high, size)
    part = Image.fromarray(mask.astype(np.float32))
    if mask.shape != (box.height, box.width):
        part = part.resize((box.width, box.height), Image.Resampling.BILINEAR)
    share = np.asarray(part)
    least = HALF if share.max() >= HALF else share.max() / 2
    square = np.zeros((size, size), bool)
    square[box.top : box.top + box.height, box.left : box.left + box.width] = (share >= least) & (share > 0)
    return square
