"""Steps between what a row says and what a processor is given: tables of functions, without chance."""

import re
from collections.abc import Callable

from PIL import Image, ImageOps

TEXT_STEPS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower_case": str.lower,
    "collapse_spaces": lambda text: re.sub(r"\s+", " ", text),
    "drop_last_mark": lambda text: text.rstrip().rstrip("?.!"),
}
"""Names in preprocessing > text -> step of a text."""


def pad_to_square(image: Image.Image) -> Image.Image:
    """The whole picture in the middle of a black square."""
    return ImageOps.pad(image, (max(image.size),) * 2)


def centre_square(image: Image.Image) -> Image.Image:
    """The largest square in the middle of the picture."""
    return ImageOps.fit(image, (min(image.size),) * 2)


IMAGE_STEPS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "pad_to_square": pad_to_square,
    "centre_square": centre_square,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
}
"""Names in preprocessing > image -> step of an RGB picture."""


def apply_steps(value, names: tuple[str, ...], table: dict):
    """The value after the named steps, in their order."""
    for name in names:
        value = table[name](value)
    return value
