"""Media that lie in a store and have a name there: the published TSV folder, a frame store, a tar archive.

A `StoredPath` stands for such a medium wherever a path does. Stores are opened once in a process.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicksviewer.utils.frame_store import FrameStore, is_frame_store
from quicksviewer.utils.media import MediaError, MediaLimits
from quicksviewer.utils.stored_video import StoredVideo
from quicksviewer.utils.tar_shard import TarShard, is_remote
from quicksviewer.utils.tsv import ROWS, TSVReader

SEPARATOR = "::"
MAX_OPEN = 64
"""Stores that a process keeps open."""


class StoredPath(str):
    """A medium of a store: "STORE::NAME" as a text, so that it passes through schemas and messages."""

    def __new__(cls, store: str | os.PathLike, name: str):
        self = super().__new__(cls, f"{os.fspath(store)}{SEPARATOR}{name}")
        self.store, self.name = os.fspath(store), name
        return self

    def load(self, limits: MediaLimits | None = None) -> bytes:
        """The bytes of a file in a store, or of the first frame of a stored video. MediaError without it."""
        store = open_store(self.store, limits)
        with self._known():
            return store.read(self.name) if hasattr(store, "read") else store.encoded(self.name, 0)

    def open_frames(self, limits: MediaLimits | None = None) -> StoredVideo | None:
        """The stored video; None where the store holds files and not frames. MediaError without it."""
        store = open_store(self.store, limits)
        if not hasattr(store, "as_video"):
            return None
        with self._known():
            return store.as_video(self.name)

    def num_bytes(self) -> int:
        """Bytes that it takes in its store. MediaError without it."""
        with self._known():
            return open_store(self.store).num_bytes(self.name)

    def changed(self) -> int:
        """When its store was changed, in ns; 0 of one that is elsewhere."""
        state = _state(self.store)
        return state[1] if state else 0

    @contextmanager
    def _known(self):
        try:
            yield
        except KeyError as error:
            raise MediaError(self, f"no such medium in {self.store}") from error

    def __getnewargs__(self):
        return self.store, self.name


@dataclass(frozen=True)
class StoreKind:
    """How a store is told from its path, and opened (path, limits). `holds_frames`: a medium in it is a video
    of pictures, not a file."""

    sniff: Callable[[str], bool]
    open: Callable[[str, MediaLimits | None], Any]
    holds_frames: bool


_stamps: dict[str, dict] = {}
"""Of archives elsewhere that were open: while a process runs they are taken to stay what they are."""


def _open_tar(path: str, limits: MediaLimits | None) -> TarShard:
    shard = TarShard(path, limits, _stamps.get(path))
    if is_remote(path):
        _stamps[path] = shard.stamp
    return shard


STORES = {
    "tsv": StoreKind(lambda path: Path(path, ROWS).is_file(), TSVReader, holds_frames=True),
    "frames": StoreKind(is_frame_store, FrameStore, holds_frames=True),
    "tar": StoreKind(lambda path: path.endswith(".tar"), _open_tar, holds_frames=False),
}


def store_kind(path: str | os.PathLike) -> str | None:
    """The kind of the store at a path; None where there is none."""
    path = os.fspath(path)
    kinds = ["tar"] if is_remote(path) else STORES
    return next((kind for kind in kinds if STORES[kind].sniff(path)), None)


_open: OrderedDict[tuple, Any] = OrderedDict()


def open_store(path: str | os.PathLike, limits: MediaLimits | None = None) -> Any:
    """The TSVReader, FrameStore or TarShard at a path; its index and file are shared by all who ask, under
    whatever limits. MediaError without one."""
    path = os.fspath(path)
    key = (path, None if is_remote(path) else _state(path))
    if key not in _open:
        if (kind := store_kind(path)) is None:
            raise MediaError(path, f"is no store; known are {', '.join(STORES)}")
        _open[key] = STORES[kind].open(path, limits)
        while len(_open) > MAX_OPEN:
            _open.popitem(last=False)
    _open.move_to_end(key)
    store = _open[key]
    return store if limits is None or limits == store.limits else _under(store, limits)


def _under(store: Any, limits: MediaLimits) -> Any:
    """The same store under other limits."""
    other = object.__new__(type(store))
    vars(other).update(vars(store), limits=limits)
    return other


def _state(path: str) -> tuple[int, int] | None:
    """Changes when the store is replaced by another one. Of a folder: that of its rows."""
    try:
        status = os.stat(os.path.join(path, ROWS) if os.path.isdir(path) else path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
