"""The published store of decoded videos: many videos in one text file, one JPEG per second of video.

    imgs.tsv        a row per video: name <TAB> JSON list of base64 JPEG frames, 1 frame per second
    imgs.lineidx    byte offset of each row, one per line
    imgs.last       byte offset behind the last row
    fname2idx.json  name -> row

Offsets are bytes and files are opened as bytes: the published code counted characters, which goes wrong
behind the first name that is not ASCII.
"""

import base64
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from quicksviewer.utils.array_file import Arrays, is_settled, kept
from quicksviewer.utils.image import image_size
from quicksviewer.utils.media import MediaError, MediaLimits, os_errors
from quicksviewer.utils.name_table import NameTable, name_arrays
from quicksviewer.utils.stored_video import StoredVideo, decode_frames
from quicksviewer.utils.video import Closing, VideoInfo

ROWS, OFFSETS, LAST, NAMES = "imgs.tsv", "imgs.lineidx", "imgs.last", "fname2idx.json"
INDEX = (NAMES, OFFSETS, LAST)
VERSION = 1
"""Of the kept index."""
STORE_FPS = 1.0
JPEG_QUALITY = 95
"""Of frames that come as arrays."""
PARTIAL = ".partial"
"""Ending of files while they are written."""
PREVIEW = 1 << 20
"""Bytes; the frames of a longer row are counted, this much at a time, before the row is held in memory."""


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
        self._folder, self.limits = folder, limits or MediaLimits()
        stamp, settled = self._stamp()
        of = os.path.abspath(os.path.join(folder, NAMES))
        _, arrays = kept(of, "tsv", stamp, self._read_index) if settled else self._read_index()
        self._names, self._rows, self._offsets = NameTable(arrays), arrays["rows"], arrays["offsets"]
        with os_errors(self.path):
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _stamp(self) -> tuple[dict, bool]:
        """What tells that the index is the same, and whether it can be relied on."""
        found = []
        for path in (Path(self._folder, name) for name in INDEX):
            with os_errors(path):
                found.append(path.stat())
        states = [[status.st_size, status.st_mtime_ns] for status in found]
        return {"version": VERSION, "files": states}, all(map(is_settled, found))

    def _read_index(self) -> tuple[dict, Arrays]:
        """Of all that the small files say: names in the order of their rows, the row of each, the offsets."""
        rows = self._read_names(Path(self._folder, NAMES))
        ordered = sorted(rows, key=rows.__getitem__)
        try:
            arrays = name_arrays(ordered)
            numbers = np.array([rows[name] for name in ordered], np.int64)
        except (ValueError, OverflowError) as error:
            raise MediaError(Path(self._folder, NAMES), f"has names of no use: {error}") from error
        offsets = self._read_offsets(Path(self._folder, OFFSETS), Path(self._folder, LAST))
        return {}, arrays | {"rows": numbers, "offsets": offsets}

    def _read_names(self, path: Path) -> dict[str, int]:
        with os_errors(path):
            self.limits.check_memory(path, path.stat().st_size)
            text = path.read_bytes()
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MediaError(path, f"is not readable as JSON: {error}") from error
        if not isinstance(rows, dict) or not all(type(row) is int for row in rows.values()):
            raise MediaError(path, "must be an object of names and the numbers of their rows")
        return rows

    def _read_offsets(self, *paths: Path) -> np.ndarray:
        """Where rows begin and the last one ends: int64 (rows + 1,)."""
        offsets: list[bytes] = []
        for path in paths:
            with os_errors(path):
                self.limits.check_memory(path, path.stat().st_size)
                offsets += path.read_bytes().split()
        try:
            return np.array(list(map(int, offsets)), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise MediaError(paths[0], f"holds what is no offset: {error}") from error

    def _check(self) -> None:
        size, offsets = os.fstat(self._file.fileno()).st_size, self._offsets
        if len(offsets) - 1 < len(self._rows):
            raise MediaError(self.path, f"{len(self._rows)} names, {len(offsets) - 1} offsets")
        if (np.diff(offsets) <= 0).any() or (len(offsets) and not 0 <= offsets[0] <= offsets[-1] <= size):
            reason = f"offsets do not fit into its {size} bytes (truncated, or an index of another file)"
            raise MediaError(self.path, reason)
        if len(self._rows) and not 0 <= self._rows[0] <= self._rows[-1] < len(offsets) - 1:
            raise MediaError(self.path, f"{NAMES} names rows beyond the {len(offsets) - 1} that there are")

    def __reduce__(self):
        return TSVReader, (self._folder, self.limits)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: str) -> bool:
        return self._names.find(name) is not None

    @property
    def names(self) -> list[str]:
        """Names of the videos in the order of their rows."""
        return [self._names[place] for place in range(len(self))]

    def frames(self, name: str, indices: Sequence[int] | None = None) -> np.ndarray:
        """Frames of a video, all or those at `indices`: uint8 (N, H, W, 3), RGB. Only these are decoded.

        Raises KeyError for an unknown name, IndexError for a frame that is not there, MediaError for damage.
        """
        letters = self._letters(name)
        return self._decode(name, letters, range(len(letters)) if indices is None else indices)

    def encoded(self, name: str, index: int) -> bytes:
        """A frame as it is stored, a JPEG. Raises as `frames` does."""
        return self._jpeg(name, self._letters(name), index)

    def jpegs(self, name: str) -> list[bytes]:
        """All frames as they are stored. Raises as `frames` does."""
        letters = self._letters(name)
        return [self._jpeg(name, letters, index) for index in range(len(letters))]

    def num_bytes(self, name: str) -> int:
        """Bytes that the row of a video takes. KeyError for an unknown name."""
        start, end = self._span(name)
        return end - start

    def as_video(self, name: str) -> StoredVideo:
        """The video as a VideoReader at 1 fps. Raises as `frames` does."""
        letters = self._letters(name)
        width, height = self._size(name, letters, 0)
        count = len(letters)
        facts = count / STORE_FPS, count, STORE_FPS, width, height, "mjpeg"
        info = VideoInfo(f"{self.path}::{name}", *facts, "tsv", PIL.__version__)
        return StoredVideo(info, self.limits, lambda indices: self._decode(name, letters, indices))

    def close(self) -> None:
        self._file.close()

    def _row(self, name: str) -> int:
        if (place := self._names.find(name)) is None:
            raise KeyError(f"{self.path} has no video {name!r}")
        return int(self._rows[place])

    def _span(self, name: str) -> tuple[int, int]:
        row = self._row(name)
        return int(self._offsets[row]), int(self._offsets[row + 1])

    def _letters(self, name: str) -> list[str]:
        """The row of a video: base64 text of each frame."""
        start, end = self._span(name)
        what = f"row {self._row(name)} ({name!r})"
        self.limits.check_memory(self.path, end - start)
        self.limits.check_pictures(self.path, self._count(start, end))
        found, tab, text = self._read(start, end).partition(b"\t")
        if found != name.encode(errors="surrogatepass") or not tab:
            reason = f"at byte {start} is not {what}: wrong offsets, rebuild_index repairs them"
            raise MediaError(self.path, reason)
        try:
            letters = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MediaError(self.path, f"damaged {what}: {error}") from error
        if not isinstance(letters, list) or not all(isinstance(frame, str) for frame in letters):
            raise MediaError(self.path, f"damaged {what}: it must be a list of texts")
        if not letters:
            raise MediaError(self.path, f"{what} has no frames")
        return letters

    def _read(self, start: int, end: int) -> bytes:
        # A read at a position: forked workers share the file's own position and would move it for each other.
        return os.pread(self._file.fileno(), end - start, start)

    def _count(self, start: int, end: int) -> int:
        """Frames of a long row, told from its quotation marks before all of it is read; 0 of a short one."""
        if end - start <= PREVIEW:
            return 0
        places = range(start, end, PREVIEW)
        return sum(self._read(place, min(place + PREVIEW, end)).count(b'"') for place in places) // 2

    def _decode(self, name: str, letters: list[str], indices: Sequence[int]) -> np.ndarray:
        width, height = self._size(name, letters, indices[0] if len(indices) else 0)
        shape = height, width
        return decode_frames(
            indices, shape, lambda index: self._jpeg(name, letters, index), self.path, name, self.limits
        )

    def _size(self, name: str, letters: list[str], index: int) -> tuple[int, int]:
        """Width and height of a frame."""
        try:
            return image_size(self._jpeg(name, letters, index), self.limits)
        except MediaError as error:
            raise MediaError(self.path, f"frame {index} of {name!r}: {error.reason}") from error

    def _jpeg(self, name: str, letters: list[str], index: int) -> bytes:
        if not 0 <= index < len(letters):
            raise IndexError(f"{name!r} has frames 0 to {len(letters) - 1}, not {index}")
        try:
            return base64.b64decode(letters[index], validate=True)
        except ValueError as error:
            raise MediaError(self.path, f"frame {index} of {name!r}: not base64: {error}") from error
