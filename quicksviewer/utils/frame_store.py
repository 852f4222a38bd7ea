"""Many videos as pictures in one binary file, at the size that training needs: only sampled frames are read.

    "QVFRAMES" | frames one behind the other | index: a block of utils/array_file.py | its place | "QVFRAMES"

Frames are JPEG, WebP, or raw (uint8 H x W x 3). The index has, of every video, name, frames, size, rate and
duration; of every frame, its end and its CRC. It is mapped, so that workers share one copy.
"""

import io
import os
import struct
import uuid
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from quicksviewer.utils.array_file import ALIGN, DamagedFile, map_block, write_block
from quicksviewer.utils.media import HEAD_BYTES, MediaError, MediaLimits, check_kind, os_errors
from quicksviewer.utils.name_table import NameTable, name_arrays
from quicksviewer.utils.registry import lookup
from quicksviewer.utils.stored_video import StoredVideo, decode_frames
from quicksviewer.utils.video import Closing, VideoInfo

MAGIC = b"QVFRAMES"
FOOTER = struct.Struct("<Q8s")
VERSION = 1
QUALITY = 90
ENCODED = {"jpeg": "JPEG", "webp": "WEBP"}
"""Our word for a format -> PIL's."""
PER_VIDEO = {"firsts": 1, "widths": 0, "heights": 0, "rates": 0, "seconds": 0}
PER_FRAME = {"ends": 1, "crcs": 0}
"""Array -> how many more entries it has than there are videos, or frames."""


def is_frame_store(path: str | os.PathLike) -> bool:
    """Whether a file begins as a frame store does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class FrameStoreWriter:
    """Writes a store, as a context manager. It appears whole at the end or, after an error, not at all."""

    def __init__(self, path: str | os.PathLike, format: str = "jpeg", quality: int = QUALITY):
        """format: jpeg, webp or raw. FileExistsError where something has this name already."""
        lookup({**ENCODED, "raw": "raw"}, format, "format of frames")
        self.path, self.format, self.quality = Path(path), format, quality
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists; a store is written once")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._aside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        self._file = open(self._aside, "xb")  # noqa: SIM115 - closed by __exit__
        self._file.write(MAGIC)
        self._videos: dict[str, tuple[int, int, int, float, float]] = {}
        self._ends, self._crcs = [len(MAGIC)], []

    def __enter__(self):
        return self

    def append(
        self, name: str, frames: Iterable[bytes | np.ndarray], fps: float, seconds: float | None = None
    ) -> None:
        """Add a video: frames encoded in the store's format, which are kept as they are, or uint8 (H, W, 3).

        Frame i is on screen from i / fps on. `seconds`: how long the video lasts, if not frames / fps.
        ValueError for a name that was used, for no frames, for frames of several sizes or another format.
        """
        if not name or name in self._videos:
            raise ValueError(f"{name!r} is in the store already" if name else "a video needs a name")
        if not 0 < fps < float("inf") or not (seconds is None or 0 < seconds < float("inf")):
            raise ValueError(f"{name!r} has a rate of {fps} and {seconds} seconds; both must be positive")
        pieces = [self._encoded(name, frame) for frame in frames]
        sizes = {size for _, size in pieces}
        if len(sizes) != 1:
            raise ValueError(f"{name!r} has frames of {sorted(sizes) or 'no'} sizes")
        seconds = len(pieces) / fps if seconds is None else seconds
        for letters, _ in pieces:
            self._file.write(letters)
            self._ends.append(self._ends[-1] + len(letters))
            self._crcs.append(zlib.crc32(letters))
        self._videos[name] = (len(pieces), *sizes.pop(), float(fps), float(seconds))

    def _encoded(self, name: str, frame: bytes | np.ndarray) -> tuple[bytes, tuple[int, int]]:
        """A frame as bytes, and its width and height."""
        if not isinstance(frame, np.ndarray):
            return self._as_given(name, bytes(frame))
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(f"a frame must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}")
        size = frame.shape[1], frame.shape[0]
        if self.format == "raw":
            return frame.tobytes(), size
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, ENCODED[self.format], quality=self.quality)
        return buffer.getvalue(), size

    def _as_given(self, name: str, letters: bytes) -> tuple[bytes, tuple[int, int]]:
        if self.format == "raw":
            raise ValueError(f"{name!r}: a raw frame is given as an array, not as bytes")
        kind = ENCODED[self.format]
        try:
            check_kind(name, letters[:HEAD_BYTES], (kind,))
            with Image.open(io.BytesIO(letters), formats=[kind]) as image:
                return letters, image.size
        except (MediaError, OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{name!r}: a frame must be {kind}: {error}") from error

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._aside.unlink(missing_ok=True)

    def _finish(self) -> None:
        """The index behind the frames; all on the disk before the file gets its name."""
        facts = self._videos.values()
        counts, widths, heights, rates, seconds = zip(*facts, strict=True) if facts else ((),) * 5
        arrays = {
            "firsts": np.cumsum([0, *counts], dtype="<i8"),
            "widths": np.array(widths, "<u4"),
            "heights": np.array(heights, "<u4"),
            "rates": np.array(rates, "<f8"),
            "seconds": np.array(seconds, "<f8"),
            "ends": np.array(self._ends, "<i8"),
            "crcs": np.array(self._crcs, "<u4"),
        }
        self._file.write(b"\0" * (-self._file.tell() % ALIGN))
        place = self._file.tell()
        about = {"version": VERSION, "format": self.format}
        write_block(self._file, about, arrays | name_arrays(list(self._videos)))
        self._file.write(FOOTER.pack(place, MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._aside, self.path)


class FrameStore(Closing):
    """Reads a store. May be shared by forked workers, and pickled for spawned ones."""

    def __init__(self, path: str | os.PathLike, limits: MediaLimits | None = None):
        """MediaError where the file is missing, is no store, or its index is damaged."""
        self.path, self.limits = os.fspath(path), limits or MediaLimits()
        with os_errors(self.path):
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self._index, self.format = self._read_index()
            self.names = NameTable(self._index)
            """Names of the videos by row."""
            self._check()
        except (DamagedFile, KeyError) as error:
            self.close()
            raise MediaError(self.path, f"damaged frame store: {error}") from error
        except BaseException:
            self.close()
            raise

    def _read_index(self):
        size = os.fstat(self._file.fileno()).st_size
        if os.pread(self._file.fileno(), len(MAGIC), 0) != MAGIC:
            raise MediaError(self.path, "is no frame store")
        footer = os.pread(self._file.fileno(), FOOTER.size, max(size - FOOTER.size, 0))
        place, magic = FOOTER.unpack(footer.rjust(FOOTER.size, b"\0"))
        if magic != MAGIC or size < 2 * FOOTER.size:
            raise MediaError(self.path, "damaged frame store: its end is missing")
        # The index of frames is large and not read now: each frame's CRC vouches for its entry, too.
        about, arrays = map_block(self.path, place, size - FOOTER.size, unchecked=tuple(PER_FRAME))
        if about["version"] != VERSION or about["format"] not in (*ENCODED, "raw"):
            raise MediaError(self.path, f"is a frame store of another version: {about}")
        self._end = place
        return arrays, about["format"]

    def _check(self) -> None:
        index, videos = self._index, len(self.names)
        frames = int(index["firsts"][-1]) if len(index["firsts"]) else -1
        tables = ((PER_VIDEO, videos), (PER_FRAME, frames))
        if any(len(index[name]) != count + more for table, count in tables for name, more in table.items()):
            raise DamagedFile("the arrays of its index have other lengths than they should")
        if index["firsts"][0] != 0 or (np.diff(index["firsts"]) <= 0).any():
            raise DamagedFile("a video in it has no frames")

    def __reduce__(self):
        return FrameStore, (self.path, self.limits)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return self.names.find(name) is not None

    def frames(self, name: str, indices: Sequence[int] | None = None) -> np.ndarray:
        """Frames of a video, all or those at `indices`: uint8 (N, H, W, 3), RGB. Only these are read.

        KeyError for an unknown name, IndexError for a frame that is not there, MediaError for damage.
        """
        row = self._row(name)
        return self._frames(row, range(self._count(row)) if indices is None else indices)

    def as_video(self, name: str) -> StoredVideo:
        """The video as a VideoReader. KeyError for an unknown name, MediaError for damage."""
        row, index = self._row(name), self._index
        said = [index[key][row].item() for key in ("seconds", "rates", "widths", "heights")]
        try:
            seconds, fps, width, height = said
            facts = seconds, self._count(row), fps, width, height, self.format
            info = VideoInfo(f"{self.path}::{name}", *facts, "frames", PIL.__version__)
        except ValueError as error:
            raise MediaError(self.path, f"damaged frame store: {error}") from error
        return StoredVideo(info, self.limits, lambda indices: self._frames(row, indices))

    def encoded(self, name: str, index: int) -> bytes:
        """The bytes of a frame as they are stored. Raises as `frames` does."""
        return self._bytes(self._row(name), index)

    def num_bytes(self, name: str) -> int:
        """Bytes that all frames of a video take."""
        first, last = self._index["firsts"][self._row(name) :][:2]
        return int(self._index["ends"][last] - self._index["ends"][first])

    def close(self) -> None:
        self._file.close()

    def _row(self, name: str) -> int:
        if (row := self.names.find(name)) is None:
            raise KeyError(f"{self.path} has no video {name!r}")
        return row

    def _count(self, row: int) -> int:
        return int(self._index["firsts"][row + 1] - self._index["firsts"][row])

    def _shape(self, row: int) -> tuple[int, int]:
        height, width = int(self._index["heights"][row]), int(self._index["widths"][row])
        self.limits.check_pixels(self.path, width, height)
        return height, width

    def _frames(self, row: int, indices: Sequence[int]) -> np.ndarray:
        name, is_raw = self.names[row], self.format == "raw"
        encoded = partial(self._bytes, row)
        return decode_frames(indices, self._shape(row), encoded, self.path, name, self.limits, is_raw)

    def _bytes(self, row: int, index: int) -> bytes:
        count = self._count(row)
        if not 0 <= index < count:
            raise IndexError(f"{self.names[row]!r} has frames 0 to {count - 1}, not {index}")
        frame = int(self._index["firsts"][row]) + index
        begin, end = self._index["ends"][frame : frame + 2].tolist()
        if not len(MAGIC) <= begin < end <= self._end:
            raise MediaError(self.path, f"damaged frame store: frame {frame} at bytes {begin} to {end}")
        self.limits.check_bytes(self.path, end - begin)
        # A read at a position: forked workers share the file's own position and would move it for each other.
        letters = os.pread(self._file.fileno(), end - begin, begin)
        if zlib.crc32(letters) != self._index["crcs"][frame]:
            raise MediaError(
                self.path, f"frame {index} of {self.names[row]!r} is damaged: its CRC is another"
            )
        return letters
