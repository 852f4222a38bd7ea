"""Sizes of all rows of a mixture at once, from columns of a manifest: what `lengths.measure` gives singly.

Letters: L lines of the manifest, R its rows, X some of these, N rows of the mixture.
"""

from dataclasses import asdict

import numpy as np

from quicksviewer.data.manifest import KINDS, Manifest
from quicksviewer.data.mixture import Mixture
from quicksviewer.data.packing import Caps, sizes_of
from quicksviewer.data.preprocess import MARK_OF
from quicksviewer.data.sampler import MODALITIES

MOST_TILES = 1 << 16


def too_large(text: int, tokens: int, frames: int, caps: Caps) -> str:
    """Why a row is unusable that is too large even with one frame of every video."""
    limits = ", ".join(f"{value} {name}" for name, value in asdict(caps).items() if value is not None)
    return (
        f"{text} tokens of text, with one frame of every video, make {tokens} tokens and {frames} frames; "
        f"the limits are {limits}"
    )


class ManifestSizes:
    """Of a manifest that was made for the processor. ValueError where its numbers make no sense."""

    def __init__(self, manifest: Manifest, processor):
        self.most = processor.media_config.max_frames
        self.manifest, self.firsts_R = manifest, manifest.starts[:-1]
        self.is_image_L, self.is_video_L = (manifest.is_equal("kind", kind) for kind in KINDS)
        self.pictures_L = manifest.numbers("pictures")
        self.text_R = manifest.numbers("text_tokens")[self.firsts_R]
        if len(self.pictures_L) and min(self.pictures_L.min(), self.text_R.min()) < 0:
            raise ValueError(f"{manifest.path} is no manifest that can be used: a count is negative")
        bad_L = manifest.has("error") | ((self.is_image_L | self.is_video_L) & (self.pictures_L == 0))
        self.bad_R = self._over_rows(np.maximum, bad_L)
        self.video_tokens = self._table(processor, "video", self.most)
        if (tiles := int(self.pictures_L.max(where=self.is_image_L, initial=0))) > MOST_TILES:
            raise ValueError(f"{manifest.path} is no manifest that can be used: an image of {tiles} tiles")
        self.image_tokens = self._table(processor, "image", tiles)

    def _table(self, processor, kind: str, most: int) -> np.ndarray:
        """Tokens of a medium of 0, 1, ... most pictures."""
        return np.array([0, *(processor.medium_length(MARK_OF[kind], n) for n in range(1, most + 1))])

    def _over_rows(self, reduce, values_L: np.ndarray) -> np.ndarray:
        return reduce.reduceat(values_L, self.firsts_R) if len(values_L) else values_L

    def held(self, rows_X: np.ndarray, limit_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and frames (X,) of some rows whose videos are held to so many frames."""
        if not len(rows_X):
            return rows_X, rows_X
        count_X = self.manifest.starts[rows_X + 1] - self.firsts_R[rows_X]
        first_X = np.cumsum(count_X) - count_X
        lines = np.repeat(self.firsts_R[rows_X] - first_X, count_X) + np.arange(count_X.sum())
        pictures, is_video, is_image = (
            values_L[lines] for values_L in (self.pictures_L, self.is_video_L, self.is_image_L)
        )
        video = np.minimum(pictures, np.repeat(limit_X, count_X)) * is_video
        image = pictures * is_image
        tokens = np.add.reduceat(self.video_tokens[video] + self.image_tokens[image], first_X)
        return self.text_R[rows_X] + tokens, np.add.reduceat(video + image, first_X)

    def limits(self, caps: Caps) -> tuple[np.ndarray, np.ndarray]:
        """The most frames of a video with which a row fits (0: it never does), and those of its longest."""
        longest_R = np.maximum(self._over_rows(np.maximum, self.pictures_L * self.is_video_L), 1)
        low_R, high_R = np.zeros_like(longest_R), np.minimum(longest_R, self.most)
        rows_X = np.arange(len(longest_R))
        probe_X = high_R[rows_X]  # most rows fit as they are; of the others the middle is tried, and so on
        while len(rows_X):
            fits_X = (sizes_of(*self.held(rows_X, probe_X)) <= caps.as_row()).all(axis=1)
            low_R[rows_X] = np.where(fits_X, probe_X, low_R[rows_X])
            high_R[rows_X] = np.where(fits_X, high_R[rows_X], probe_X - 1)
            rows_X = rows_X[low_R[rows_X] < high_R[rows_X]]
            probe_X = (low_R[rows_X] + high_R[rows_X] + 1) // 2
        return low_R, longest_R

    def table(self, mixture: Mixture, caps: Caps) -> dict:
        """The fields of a SizeTable."""
        rows_N = self.manifest.rows_of(mixture)
        limit_R, longest_R = self.limits(caps)
        tokens_R, frames_R = self.held(np.arange(len(limit_R)), np.maximum(limit_R, 1))
        usable_R = (limit_R > 0) & ~self.bad_R
        reduced_R = np.where((limit_R < longest_R) & (limit_R < self.most), limit_R, 0)
        return {
            "tokens": (tokens_R * usable_R)[rows_N],
            "frames": (frames_R * usable_R)[rows_N],
            "modality": (self._modality() * usable_R)[rows_N].astype(np.int8),
            "max_frames": (reduced_R * usable_R)[rows_N].astype(np.int32),
            "unusable": self._unusable(rows_N, usable_R, tokens_R, frames_R, caps),
        }

    def _modality(self) -> np.ndarray:
        """(R,) index into MODALITIES; a row with both kinds is of videos."""
        text, image, video = (MODALITIES.index(name) for name in ("text", "image", "video"))
        found_L = np.where(self.is_video_L, video, np.where(self.is_image_L, image, text))
        has_video_R = self._over_rows(np.maximum, self.is_video_L)
        return np.where(has_video_R, video, found_L[self.firsts_R])

    def _unusable(self, rows_N, usable_R, tokens_R, frames_R, caps: Caps) -> dict[int, str]:
        """Index in the mixture of each row that cannot be used -> the reason."""
        indices = np.flatnonzero(~usable_R[rows_N])
        if not len(indices):
            return {}
        lines = self.manifest.read("where", "error")
        reasons = {}
        for index in indices.tolist():
            row = int(rows_N[index])
            first, last = self.manifest.starts[row : row + 2].tolist()
            told = lines["error"].slice(first, last - first).drop_null()
            counts = (int(values[row]) for values in (self.text_R, tokens_R, frames_R))
            large = f"{lines['where'][first].as_py()}: {too_large(*counts, caps)}"
            reasons[index] = told[0].as_py() if len(told) else large
        return reasons
