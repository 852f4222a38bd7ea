"""Pictures from files or bytes, always upright RGB."""

import os
import struct
from collections.abc import Sequence
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from quicksviewer.utils.decode_pool import IsolatedReader
from quicksviewer.utils.media import IMAGE_KINDS, MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile, open_medium
from quicksviewer.utils.png_head import without_pixels
from quicksviewer.utils.video import Closing, VideoInfo

DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError),
    *(struct.error, Image.DecompressionBombError),
)
"""In all these ways PIL's plugins fail on damaged pictures."""
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


def as_rgb(source: Image.Image | str | os.PathLike | bytes, limits: MediaLimits | None = None) -> Image.Image:
    """RGB of a picture that PIL has opened already, or of one to be loaded. Raises as `load_image`."""
    return to_rgb(source) if isinstance(source, Image.Image) else load_image(source, limits)


def _decoded(medium: MediaFile, limits: MediaLimits) -> Image.Image:
    with opened(medium, limits) as image:
        image.load()
        return to_rgb(image)


def image_size(source: str | os.PathLike | bytes, limits: MediaLimits | None = None) -> tuple[int, int]:
    """Width and height of a picture as `load_image` gives it, from its head alone. Raises MediaError."""
    limits = limits or MediaLimits()
    medium = open_medium(source, IMAGE_KINDS, limits)
    if limits.isolation == "process":
        with IsolatedReader(HEAD_READER, medium, limits) as reader:
            return reader.probe().width, reader.probe().height
    with medium:
        return _size(medium, limits)


def _size(medium: MediaFile, limits: MediaLimits) -> tuple[int, int]:
    with opened(medium, limits) as image:
        size = image.size
        if medium.kind != "PNG":
            exif = image.getexif()
        else:  # whose own `getexif` decodes the picture
            with medium.reader() as file, Image.open(BytesIO(without_pixels(file)), formats=["PNG"]) as words:
                exif = Image.Image.getexif(words)
        return size[::-1] if exif.get(ORIENTATION, 1) in TURNED else size


# What a decoding child makes of pictures


class HeadReader(Closing):
    """A picture as a video of one frame, of which the size is known and nothing else."""

    def __init__(self, medium: MediaFile, limits: MediaLimits):
        """Takes the file over. Raises as `image_size`."""
        with medium:
            self._info = _info(medium, *self._look(medium, limits))

    def _look(self, medium: MediaFile, limits: MediaLimits) -> tuple[int, int]:
        return _size(medium, limits)

    def probe(self) -> VideoInfo:
        return self._info

    def close(self) -> None:
        """Nothing is open."""


class PictureReader(HeadReader):
    """A picture as a video of one frame."""

    def _look(self, medium: MediaFile, limits: MediaLimits) -> tuple[int, int]:
        self._pixels_HWC = np.asarray(_decoded(medium, limits))
        return self._pixels_HWC.shape[1::-1]

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty((len(times), *self._pixels_HWC.shape), np.uint8) if out is None else out
        out[:] = self._pixels_HWC
        return out

    def close(self) -> None:
        self._pixels_HWC = None


def _info(medium: MediaFile, width: int, height: int) -> VideoInfo:
    return VideoInfo(medium.name, 1.0, 1, 1.0, width, height, medium.kind, "PIL", PIL.__version__)


PICTURE_READER, HEAD_READER = (f"quicksviewer.utils.image:{name}" for name in ("PictureReader", "HeadReader"))


# PIL


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
    except DAMAGE as error:
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
