"""What a visitor of the page may upload, and what they are told of what they may not.

A refusal is in words of its own: it holds no path and no error of a library. The gate (utils/media_gate.py)
and a decoder in a child see every file; this says beforehand which of the page's own bounds it breaks.
"""

import os
from dataclasses import dataclass, replace

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.utils.data_util import MediaError, MediaLimits, image_size, load_image, open_video
from quicksviewer.utils.media import HEAD_BYTES, IMAGE_KINDS, VIDEO_KINDS, sniff

MARK_OF = dict.fromkeys(VIDEO_KINDS, VIDEO_MARK) | dict.fromkeys(IMAGE_KINDS, IMAGE_MARK)
"""Kind of content -> mark. The name of an upload says nothing."""
ACCEPTED = {
    VIDEO_MARK: "an mp4, mov, mkv, webm or avi video",
    IMAGE_MARK: "a JPEG, PNG, WebP, GIF or BMP image",
}


class Refused(Exception):
    """Something that the page does not do for a visitor. `str()` is what they are told."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """How much one file may be."""

    max_bytes: int = 256 * 2**20
    max_seconds: float = 3600
    max_pixels: int = 2**25
    """Width times height."""

    def __post_init__(self):
        if min(self.max_bytes, self.max_seconds, self.max_pixels) <= 0:
            raise ValueError(f"limits of uploads must be positive, got {self}")

    def within(self, limits: MediaLimits) -> MediaLimits:
        """The limits of the gate with these in place of its own, and decoders in children."""
        bounds = dict(max_bytes=self.max_bytes, max_seconds=self.max_seconds, max_pixels=self.max_pixels)
        return replace(limits, isolation="process", **bounds)


def check_upload(path: str, allowed: tuple[str, ...], limits: UploadLimits, media: MediaLimits) -> str:
    """The mark of an uploaded file that may be shown. Refused says why it may not.

    `allowed`: marks. `media`: the limits with which the model's processor opens media.
    """
    size = os.stat(path).st_size
    if size > limits.max_bytes:
        raise Refused(f"The file is larger than the {limits.max_bytes / 2**20:.0f} MB that are taken here.")
    with open(path, "rb") as file:
        mark = MARK_OF.get(sniff(file.read(HEAD_BYTES)))
    if mark not in allowed:
        raise Refused(f"This is not {' or '.join(ACCEPTED[one] for one in allowed)}.")
    try:
        CHECKS[mark](path, limits, media)
    except MediaError as error:
        raise Refused("The file is damaged, cut off, or coded in a way that cannot be read here.") from error
    return mark


def _check_video(path: str, limits: UploadLimits, media: MediaLimits) -> None:
    with open_video(path, limits=replace(media, isolation="process")) as reader:
        info = reader.probe()
    if info.duration > limits.max_seconds:
        raise Refused(f"The video is longer than the {_span(limits.max_seconds)} that are taken here.")
    _check_pixels(info.width * info.height, limits)


def _check_image(path: str, limits: UploadLimits, media: MediaLimits) -> None:
    width, height = image_size(path, media)
    _check_pixels(width * height, limits)
    load_image(path, limits.within(media))


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:g} seconds"


def _check_pixels(pixels: int, limits: UploadLimits) -> None:
    if pixels > limits.max_pixels:
        raise Refused(f"The picture has more than the {limits.max_pixels / 1e6:.0f} megapixels taken here.")


CHECKS = {VIDEO_MARK: _check_video, IMAGE_MARK: _check_image}
