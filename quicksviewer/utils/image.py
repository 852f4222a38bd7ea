"""Pictures from files or bytes, always upright RGB."""

import os
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from quicksviewer.utils.decode_pool import IsolatedReader
from quicksviewer.utils.media import IMAGE_KINDS, MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile, open_medium
from quicksviewer.utils.video import Closing, VideoInfo

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag for how a picture is turned, and its values that swap width and height."""


def load_image(source: str | os.PathLike | bytes, limits: MediaLimits | None = None) -> Image.Image:
    """A picture as RGB, turned as its EXIF data say, transparency laid over white, of a GIF the first frame.

    Raises MediaError: no such file, not a picture by its content, damaged, truncated, beyond the limits.
    """
    limits = limits or MediaLimits()
    medium = open_medium(source, IMAGE_KINDS, limits)
    if limits.isolation == "process":
        with IsolatedReader(PICTURE_READER, medium, limits) as reader:
            return Image.fromarray(reader.frames_at([0.0])[0])
    with medium:
        return _decoded(medium, limits)


def _decoded(medium: MediaFile, limits: MediaLimits) -> Image.Image:
    with opened(medium, limits) as image:
        image.load()
        return to_rgb(image)


class PictureReader(Closing):
    """A picture as a video of one frame: what a decoding child makes of it."""

    def __init__(self, medium: MediaFile, limits: MediaLimits):
        """Takes the file over. Raises as `load_image`."""
        with medium:
            self._pixels_HWC = np.asarray(_decoded(medium, limits))
        height, width, _ = self._pixels_HWC.shape
        who = (medium.kind, "PIL", PIL.__version__)
        self._info = VideoInfo(medium.name, 1.0, 1, 1.0, width, height, *who)

    def probe(self) -> VideoInfo:
        return self._info

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty((len(times), *self._pixels_HWC.shape), np.uint8) if out is None else out
        out[:] = self._pixels_HWC
        return out

    def close(self) -> None:
        self._pixels_HWC = None


PICTURE_READER = "quicksviewer.utils.image:PictureReader"


def image_size(source: str | os.PathLike | bytes, limits: MediaLimits | None = None) -> tuple[int, int]:
    """Width and height of a picture as `load_image` gives it, from its head alone. Raises MediaError."""
    limits = limits or MediaLimits()
    with open_medium(source, IMAGE_KINDS, limits) as medium, opened(medium, limits) as image:
        turned = image.getexif().get(ORIENTATION, 1) in TURNED
        return image.size[::-1] if turned else image.size


@contextmanager
def opened(medium: MediaFile, limits: MediaLimits):
    """The picture of a medium, read as far as its head and not too large. Raises MediaError, also of what is
    done with it."""
    try:
        with medium.reader() as file, Image.open(file, formats=[medium.kind]) as image:
            limits.check_pixels(medium.name, *image.size)
            limits.check_expansion(medium.name, medium.size, *image.size)
            yield image
    except UnidentifiedImageError as error:  # its own words hold addresses of memory
        raise MediaError(medium.name, f"damaged {medium.kind}: its head cannot be read") from error
    # Damaged pictures make PIL's plugins fail in all these ways.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise MediaError(medium.name, f"damaged {medium.kind}: {error}") from error


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
