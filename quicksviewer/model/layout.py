"""The exact token layout of any medium, from its metadata alone.

    video   <video_start> <thumbnail_start> Q <thumbnail_end> ( W Q ) x C <video_end>
    image   <im_start> ( <patch_start> Q <patch_end> ) x pictures <im_end>

Letters: Q visual tokens of a cube, W characters of a timestamp, C cubes. C depends only on the number of
frames, and Q and W are constants, so lengths are known before a frame is decoded. Nobody else in the project
counts tokens.
"""

from dataclasses import dataclass

from quicksviewer.constants import (
    IMAGE_END,
    IMAGE_START,
    MODEL_TOKENS,
    PATCH_END,
    PATCH_START,
    THUMBNAIL_END,
    THUMBNAIL_START,
    TIME_TOKEN,
    VIDEO_END,
    VIDEO_START,
    VISUAL_TOKEN,
)
from quicksviewer.model.config import MultimodalConfig


@dataclass(frozen=True)
class Layout:
    """Token ids of media for one model. With `time_style: plain` lengths are an upper bound (see
    `is_exact`)."""

    config: MultimodalConfig

    @property
    def is_exact(self) -> bool:
        """False for plain timestamps: the leading zeros of a time are then masked out when the cuts are
        known."""
        return self.config.layout.time_style == "fixed"

    @property
    def visual_id(self) -> int:
        return self.token_id(VISUAL_TOKEN)

    @property
    def time_id(self) -> int:
        return self.token_id(TIME_TOKEN)

    def token_id(self, token: str) -> int:
        return self.config.first_special_id + MODEL_TOKENS.index(token)

    def num_cubes(self, num_frames: int) -> int:
        return self.config.cubing.num_cubes(num_frames)

    def video_ids(self, num_frames: int) -> list[int]:
        """Ids of a video of `num_frames` frames."""
        cube = [self.time_id] * self.config.layout.time_width + self._visual()
        return [
            self.token_id(VIDEO_START),
            *self._thumbnail(),
            *cube * self.num_cubes(num_frames),
            self.token_id(VIDEO_END),
        ]

    def image_ids(self, num_pictures: int) -> list[int]:
        """Ids of an image of `num_pictures` pictures: the whole, then its tiles."""
        if num_pictures < 1:
            raise ValueError(f"an image has at least one picture, got {num_pictures}")
        picture = [self.token_id(PATCH_START), *self._visual(), self.token_id(PATCH_END)]
        return [self.token_id(IMAGE_START), *picture * num_pictures, self.token_id(IMAGE_END)]

    def _visual(self) -> list[int]:
        return [self.visual_id] * self.config.tokens_per_cube

    def _thumbnail(self) -> list[int]:
        if not self.config.thumbnail.enabled:
            return []
        return [self.token_id(THUMBNAIL_START), *self._visual(), self.token_id(THUMBNAIL_END)]
