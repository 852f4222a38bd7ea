"""Pictures from files or bytes, always upright RGB."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

from quicksviewer.utils.media import HEAD_BYTES, IMAGE_KINDS, MediaError, MediaLimits, check_file, check_kind

BYTES_NAME = "<bytes>"
"""Stands for the path in errors about a picture that came as bytes."""

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag for how a picture is turned, and its values that swap width and height."""


def load_image(source: str | os.PathLike | bytes, limits: MediaLimits | None = None) -> Image.Image:
    """A picture as RGB, turned as its EXIF data say, transparency laid over white, of a GIF the first frame.

    Raises MediaError: no such file, not a picture by its content, damaged, truncated, beyond the limits.
    """
    limits = limits or MediaLimits()
    in_memory = isinstance(source, bytes | bytearray | memoryview)
    name = BYTES_NAME if in_memory else os.fspath(source)
    if in_memory:
        limits.check_bytes(name, len(source))
        kind = check_kind(name, bytes(source[:HEAD_BYTES]), IMAGE_KINDS)
    else:
        kind = check_file(source, IMAGE_KINDS, limits)
    try:
        with Image.open(io.BytesIO(source) if in_memory else source, formats=[kind]) as image:
            limits.check_pixels(name, *image.size)
            image.load()
            return to_rgb(image)
    # Damaged pictures make PIL's plugins fail in all these ways.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise MediaError(name, f"damaged {kind}: {error}") from error


def image_size(path: str | os.PathLike, limits: MediaLimits | None = None) -> tuple[int, int]:
    """Width and height of a picture as `load_image` gives it, from its head alone. Raises MediaError."""
    limits = limits or MediaLimits()
    kind = check_file(path, IMAGE_KINDS, limits)
    try:
        with Image.open(path, formats=[kind]) as image:
            limits.check_pixels(os.fspath(path), *image.size)
            turned = image.getexif().get(ORIENTATION, 1) in TURNED
            return image.size[::-1] if turned else image.size
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise MediaError(os.fspath(path), f"damaged {kind}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB picture: turned as its EXIF says, what is transparent over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey; PIL's own conversion clips them to white
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
