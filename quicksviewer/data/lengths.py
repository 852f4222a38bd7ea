"""How large every row of a mixture is, before one of its media is decoded: tokens, frames, and what had to be
done that it fits.

The number of frames follows from the head of a file and the frame plan, tokens follow from frames and text.
A row that is too large is given fewer frames; one that is too large without them, or that cannot be used, is
listed with its reason. Heads of files are kept on disk by path, size and time of change, and the whole table
by the rows and settings that it is made from. With a manifest no medium is opened, and where it was made for
the same processor, no row is read either.
"""

import hashlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.data.manifest import Manifest, processor_digest, words_of
from quicksviewer.data.manifest_sizes import ManifestSizes, too_large
from quicksviewer.data.mixture import Mixture
from quicksviewer.data.packing import Caps, sizes_of
from quicksviewer.data.preprocess import MediumRef, Sample, SampleError, modality, parse_sample
from quicksviewer.data.sampler import MODALITIES
from quicksviewer.utils.data_util import MediaError, MediaLimits, VideoInfo, open_video
from quicksviewer.utils.image import image_size
from quicksviewer.utils.stores import StoredPath

MARK_OF = {"image": IMAGE_MARK, "video": VIDEO_MARK}


@dataclass(frozen=True)
class RowSize:
    """`max_frames`: what each of its videos is held to; 0 where the media settings do."""

    tokens: int
    frames: int
    modality: str
    max_frames: int = 0


# Heads of files


class Heads:
    """What is known of media files without decoding them, kept in a file (or in memory).

    Files that nobody has looked at yet are opened in a child, as long as `limits` do not say otherwise.
    """

    def __init__(
        self,
        path: str | os.PathLike = ":memory:",
        decoder: str = "av",
        limits: MediaLimits | None = None,
    ):
        self.decoder, self.limits = decoder, limits or MediaLimits(isolation="process")
        self.store = sqlite3.connect(path)
        self.store.execute(
            "CREATE TABLE IF NOT EXISTS heads (path TEXT, decoder TEXT, bytes INTEGER, changed INTEGER, "
            "head TEXT, PRIMARY KEY (path, decoder))"
        )

    def video(self, path: str) -> VideoInfo:
        """Raises MediaError."""
        return VideoInfo(**self._known(path, self.decoder, self._probe))

    def image(self, path: str) -> tuple[int, int]:
        """Width and height, upright. Raises MediaError."""
        return tuple(self._known(path, "image", self._measure))

    def _measure(self, path: str) -> tuple[int, int]:
        return image_size(path, self.limits)

    def _probe(self, path: str) -> dict:
        with open_video(path, self.decoder, self.limits) as reader:
            return asdict(reader.probe())

    def _known(self, path: str, decoder: str, look) -> dict | list:
        """The head of a file from the store, if the file is still the same; else from the file."""
        try:
            state = state_of(path)
        except MediaError:
            return look(path)  # it says better why there is nothing
        where = "WHERE path = ? AND decoder = ? AND bytes = ? AND changed = ?"
        key = (os.path.abspath(path), decoder, *state)
        if row := self.store.execute(f"SELECT head FROM heads {where}", key).fetchone():
            return json.loads(row[0])
        head = look(path)
        with self.store:
            self.store.execute(
                "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)", (*key, json.dumps(head))
            )
        return head


def state_of(path: str) -> tuple[int, int]:
    """Bytes of a medium and when its file, or its store, was changed (ns). Raises MediaError."""
    if isinstance(path, StoredPath):
        return path.num_bytes(), path.changed()
    try:
        at = os.stat(path)
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(path, f"cannot be read: {reason}") from error
    return at.st_size, at.st_mtime_ns


# One row


def measure(sample: Sample, processor, heads: Heads, caps: Caps) -> RowSize:
    """The size of a sample under the caps, with fewer frames where it needs that.

    MediaError for a file that cannot be used; ValueError where even one frame a video is too much.
    """
    text = processor.text_length(sample.turns)
    whole = [_pictures(medium, processor, heads) for medium in sample.media]
    most = processor.media_config.max_frames

    def size(limit: int) -> RowSize:
        held = [(kind, min(n, limit) if kind == "video" else n) for kind, n in whole]
        tokens = text + sum(processor.medium_length(MARK_OF[kind], n) for kind, n in held)
        return RowSize(tokens, sum(n for _, n in held), modality(sample), limit if limit < most else 0)

    limit = _largest(lambda limit: _fits(size(limit), caps), min(most, _longest(whole)))
    if limit == 0:
        least = size(1)
        raise ValueError(too_large(text, least.tokens, least.frames, caps))
    return replace(size(limit), max_frames=0) if limit >= _longest(whole) else size(limit)


def _pictures(medium: MediumRef, processor, heads: Heads) -> tuple[str, int]:
    if medium.kind == "image":
        return "image", processor.count_pictures(*heads.image(medium.path))
    info = heads.video(medium.path)
    return "video", processor.count_frames(info, medium.start, medium.end, medium.timestamps)


def _longest(whole: list[tuple[str, int]]) -> int:
    return max((n for kind, n in whole if kind == "video"), default=1)


def _largest(fits, most: int) -> int:
    """The largest of 1..most that fits, given that all below one that fits do; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _fits(size: RowSize, caps: Caps) -> bool:
    return bool((sizes_of([size.tokens], [size.frames])[0] <= caps.as_row()).all())


# All rows


@dataclass(frozen=True)
class SizeTable:
    """Sizes of the rows of a mixture by index; `unusable`: index of a row that has none -> the reason."""

    tokens: np.ndarray
    frames: np.ndarray
    modality: np.ndarray
    """Index into MODALITIES."""
    max_frames: np.ndarray
    """0: as the media settings say."""
    unusable: dict[int, str]

    @property
    def sizes(self) -> np.ndarray:
        """(N, 3) as the packer wants them; 0 tokens for a row without size."""
        return sizes_of(self.tokens, self.frames)

    @property
    def digest(self) -> str:
        """Of what an order by length and modality depends on."""
        parts = self.tokens.astype(np.int64), self.modality.astype(np.int64)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    @property
    def reduced(self) -> np.ndarray:
        """Indices of the rows that are held to fewer frames."""
        return np.flatnonzero(self.max_frames)

    def save(self, path: Path) -> None:
        """Written aside, then renamed."""
        arrays = {key: value for key, value in vars(self).items() if key != "unusable"}
        reasons = np.frombuffer(json.dumps(self.unusable).encode(), dtype=np.uint8)
        aside = path.with_suffix(f".{uuid.uuid4().hex}.npz")
        np.savez(aside, unusable=reasons, **arrays)
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> "SizeTable":
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        reasons = json.loads(arrays.pop("unusable").tobytes())
        return cls(**arrays, unusable={int(index): reason for index, reason in reasons.items()})


def size_table(
    mixture: Mixture,
    processor,
    caps: Caps,
    cache: str | os.PathLike | None = None,
    manifest: str | os.PathLike | None = None,
) -> SizeTable:
    """Sizes of all rows of a mixture, from `cache` (a folder) when they were measured before.

    In a table from the cache, or from a `manifest` (a file of `quicksviewer data index`), no file has been
    looked at again; a medium that has changed since shows when its row is loaded. ValueError for a manifest
    that does not have all of the mixture.
    """
    if manifest is not None:
        return _from_manifest(Manifest(manifest), mixture, processor, caps)
    media = processor.media_config
    if cache is None:
        heads = Heads(decoder=media.decoder, limits=media.limits())
        return _measure_all(mixture, processor, caps, heads)
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sizes-{_key(mixture, processor, caps)}.npz"
    if not path.is_file():
        heads = Heads(folder / "heads.sqlite", media.decoder, media.limits())
        _measure_all(mixture, processor, caps, heads).save(path)
    return SizeTable.load(path)


def _key(mixture: Mixture, processor, caps: Caps) -> str:
    """Of all that sizes follow from: rows and where their media lie, template, layout, tokenizer, caps."""
    roots = [[spec.path, spec.media_root] for spec in mixture.specs]
    told = [mixture.fingerprint, roots, processor.to_dict(), asdict(caps), words_of(processor.tokenizer)]
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:24]


def _measure_all(mixture: Mixture, processor, caps: Caps, heads: Heads) -> SizeTable:
    rows, unusable = [], {}
    for index in range(len(mixture)):
        try:
            rows.append(_measure_row(mixture, index, processor, heads, caps))
        except (SampleError, MediaError) as error:
            rows.append(RowSize(0, 0, "text"))
            unusable[index] = str(error)
    return _as_table(rows, unusable)


def _measure_row(mixture: Mixture, index: int, processor, heads: Heads, caps: Caps) -> RowSize:
    record, where = mixture[index]
    try:
        return measure(parse_sample(record, where), processor, heads, caps)
    except ValueError as error:
        raise SampleError(where, str(error)) from error


def _as_table(rows: Sequence[RowSize], unusable: dict[int, str]) -> SizeTable:
    def column(values: Iterable[int], dtype) -> np.ndarray:
        return np.fromiter(values, dtype, len(rows))

    return SizeTable(
        tokens=column((row.tokens for row in rows), np.int64),
        frames=column((row.frames for row in rows), np.int64),
        modality=column((MODALITIES.index(row.modality) for row in rows), np.int8),
        max_frames=column((row.max_frames for row in rows), np.int32),
        unusable=unusable,
    )


def _from_manifest(manifest: Manifest, mixture: Mixture, processor, caps: Caps) -> SizeTable:
    if manifest.processor != processor_digest(processor):
        return _measure_all(mixture, processor, caps, manifest.heads())
    return SizeTable(**ManifestSizes(manifest, processor).table(mixture, caps))
