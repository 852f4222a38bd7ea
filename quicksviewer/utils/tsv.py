"""The published store of decoded videos: many videos in one text file, one JPEG per second of video.

    imgs.tsv        a row per video: name <TAB> JSON list of base64 JPEG frames, 1 frame per second
    imgs.lineidx    byte offset of each row, one per line
    imgs.last       byte offset behind the last row
    fname2idx.json  name -> row

Offsets are bytes and files are opened as bytes: the published code counted characters, which goes wrong
behind the first name that is not ASCII.
"""

import base64
import binascii
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from quicksviewer.utils.image import load_image
from quicksviewer.utils.media import MediaError, MediaLimits, os_errors
from quicksviewer.utils.video import Closing, VideoInfo, check_info, checked_times, index_at, room_for

ROWS, OFFSETS, LAST, NAMES = "imgs.tsv", "imgs.lineidx", "imgs.last", "fname2idx.json"
STORE_FPS = 1.0
JPEG_QUALITY = 95
"""Of frames that come as arrays."""
PARTIAL = ".partial"
"""Ending of files while they are written."""


class TSVWriter:
    """Writes a store, as a context manager. It appears whole at the end or, after an error, not at all."""

    def __init__(self, folder: str | os.PathLike):
        """Raises FileExistsError when the folder holds a store already."""
        self.folder = Path(folder)
        if (self.folder / ROWS).exists():
            raise FileExistsError(f"{self.folder / ROWS} exists; a store is written once")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, int] = {}
        self._offsets = [0]
        self._file = open(self.folder / (ROWS + PARTIAL), "wb")  # noqa: SIM115 - closed by __exit__

    def __enter__(self):
        return self

    def append(self, name: str, frames: Iterable[bytes | np.ndarray]) -> None:
        """Add a video: its frames at 1 fps, as JPEG bytes or as uint8 (H, W, 3) arrays.

        Raises ValueError on a name that was used or cannot stand in a row, on no frames, on what is no JPEG.
        """
        if name in self._rows:
            raise ValueError(f"{name!r} is in the store already")
        if not name or any(letter in name for letter in "\t\r\n"):
            raise ValueError(f"a name must be text without tabs and line breaks, got {name!r}")
        letters = [base64.b64encode(_as_jpeg(frame)).decode("ascii") for frame in frames]
        if not letters:
            raise ValueError(f"{name!r} has no frames")
        row = f"{name}\t{json.dumps(letters)}\n".encode()
        self._file.write(row)
        self._rows[name] = len(self._rows)
        self._offsets.append(self._offsets[-1] + len(row))

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            self._file.close()
            (self.folder / (ROWS + PARTIAL)).unlink(missing_ok=True)

    def close(self) -> None:
        """Make the store visible: rows on the disk, then the index, and the rows' final name last."""
        if self._file.closed:
            return
        _sync_and_close(self._file)
        _write_index(self.folder, self._rows, self._offsets)
        os.replace(self.folder / (ROWS + PARTIAL), self.folder / ROWS)


def _as_jpeg(frame: bytes | np.ndarray) -> bytes:
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}")
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()
    if not bytes(frame[:3]) == b"\xff\xd8\xff":
        raise ValueError(f"a frame must be a JPEG, got bytes that start with {bytes(frame[:8]).hex(' ')}")
    return bytes(frame)


def _write_index(folder: Path, rows: dict[str, int], offsets: list[int]) -> None:
    """The three small files; `offsets` has one more than rows."""
    texts = {
        OFFSETS: "".join(f"{offset}\n" for offset in offsets[:-1]),
        LAST: f"{offsets[-1]}\n",
        NAMES: json.dumps(rows, ensure_ascii=False),
    }
    for name, text in texts.items():
        with open(folder / (name + PARTIAL), "wb") as file:
            file.write(text.encode())
            _sync_and_close(file)
        os.replace(folder / (name + PARTIAL), folder / name)


def _sync_and_close(file) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def rebuild_index(folder: str | os.PathLike) -> int:
    """Write the index files of a store anew from its rows, when its offsets are wrong. The number of rows."""
    folder = Path(folder)
    rows, offsets = {}, [0]
    with open(folder / ROWS, "rb") as file:
        for row in file:
            rows[row.partition(b"\t")[0].decode()] = len(offsets) - 1
            offsets.append(offsets[-1] + len(row))
    _write_index(folder, rows, offsets)
    return len(offsets) - 1


class TSVReader(Closing):
    """Reads a store. May be shared by forked workers, and pickled for spawned ones."""

    def __init__(self, folder: str | os.PathLike, limits: MediaLimits | None = None):
        """Raises MediaError when a file of the store is missing or they do not fit together."""
        self.path = os.path.join(folder, ROWS)
        self._folder, self._limits = folder, limits or MediaLimits()
        with os_errors(folder):
            self._rows = json.loads(Path(folder, NAMES).read_bytes())
            offsets = Path(folder, OFFSETS).read_bytes().split()
            last = Path(folder, LAST).read_bytes()
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._offsets = np.array([*offsets, last], dtype=np.int64)
        self._check()

    def _check(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if len(self._offsets) - 1 < len(self._rows):
            raise MediaError(self.path, f"{len(self._rows)} names, {len(self._offsets) - 1} offsets")
        if (np.diff(self._offsets) <= 0).any() or self._offsets[-1] > size:
            reason = f"offsets do not fit into its {size} bytes (truncated, or an index of another file)"
            raise MediaError(self.path, reason)

    def __reduce__(self):
        return TSVReader, (self._folder, self._limits)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> list[str]:
        """Names of the videos in the order of their rows."""
        return sorted(self._rows, key=self._rows.__getitem__)

    def frames(self, name: str, indices: Sequence[int] | None = None) -> np.ndarray:
        """Frames of a video, all or those at `indices`: uint8 (N, H, W, 3), RGB. Only these are decoded.

        Raises KeyError for an unknown name, IndexError for a frame that is not there, MediaError for damage.
        """
        letters = self._letters(name)
        return self._decode(name, letters, range(len(letters)) if indices is None else indices)

    def as_video(self, name: str) -> "TSVVideo":
        """The video as a VideoReader at 1 fps. Raises as `frames` does."""
        return TSVVideo(self, name)

    def close(self) -> None:
        self._file.close()

    def _letters(self, name: str) -> list[str]:
        """The row of a video: base64 text of each frame."""
        if name not in self._rows:
            raise KeyError(f"{self.path} has no video {name!r}")
        row = self._rows[name]
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        # A read at a position: forked workers share the file's own position and would move it for each other.
        found, tab, text = os.pread(self._file.fileno(), end - start, start).partition(b"\t")
        if found != name.encode() or not tab:
            reason = f"row {row} at byte {start} is not {name!r}: wrong offsets, rebuild_index repairs them"
            raise MediaError(self.path, reason)
        try:
            letters = json.loads(text)
        except ValueError as error:
            raise MediaError(self.path, f"damaged row {row} ({name!r}): {error}") from error
        if not letters:
            raise MediaError(self.path, f"row {row} ({name!r}) has no frames")
        return letters

    def _decode(self, name: str, letters: list[str], indices: Sequence[int]) -> np.ndarray:
        pictures = {}
        for index in indices:
            if not 0 <= index < len(letters):
                raise IndexError(f"{name!r} has frames 0 to {len(letters) - 1}, not {index}")
            if index not in pictures:
                pictures[index] = self._picture(name, letters, index)
        if not pictures:
            return np.empty((0, *self._picture(name, letters, 0).shape), np.uint8)
        sizes = {picture.shape for picture in pictures.values()}
        if len(sizes) > 1:
            raise MediaError(self.path, f"{name!r} mixes frames of {sorted(sizes)}")
        return np.stack([pictures[index] for index in indices])

    def _picture(self, name: str, letters: list[str], index: int) -> np.ndarray:
        try:
            return np.asarray(load_image(base64.b64decode(letters[index], validate=True), self._limits))
        except (binascii.Error, MediaError) as error:
            reason = getattr(error, "reason", str(error))
            raise MediaError(self.path, f"frame {index} of {name!r}: {reason}") from error


class TSVVideo(Closing):
    """One row of a store behind the calls of a VideoReader. Frame i is on screen from second i to i + 1."""

    def __init__(self, store: TSVReader, name: str):
        self._store, self._name = store, name
        self._letters = store._letters(name)
        height, width = store._picture(name, self._letters, 0).shape[:2]
        count = len(self._letters)
        path = f"{store.path}#{name}"
        info = VideoInfo(path, count / STORE_FPS, count, STORE_FPS, width, height, "mjpeg")
        self._info = check_info(info, store._limits)

    def probe(self) -> VideoInfo:
        return self._info

    def frames_at(self, times: Sequence[float]) -> np.ndarray:
        starts_F = np.arange(len(self._letters)) / STORE_FPS
        index_N = index_at(starts_F, checked_times(times), slack=1e-6)
        room_for(len(index_N), self._info, self._store._limits)
        return self._store._decode(self._name, self._letters, index_N.tolist())

    def close(self) -> None:
        """The file belongs to the store."""
