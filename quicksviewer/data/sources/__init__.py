"""Where rows come from: one interface over files, folders and archives.

A `Source` has rows by index, each with the place that a message can name. What kind a path is, is told from
what lies there, unless it is said. The media of a kind that is a store are in the store; of the others, they
are files.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from quicksviewer.data.sources.jsonl import JsonlIndex
from quicksviewer.data.sources.rows import parse_row, with_media
from quicksviewer.data.sources.tar import TarSource
from quicksviewer.utils.frame_store import is_frame_store
from quicksviewer.utils.media_gate import RootedPath
from quicksviewer.utils.registry import lookup
from quicksviewer.utils.stores import StoredPath, is_remote, store_kind
from quicksviewer.utils.tsv import ROWS

__all__ = ["SOURCES", "JsonlIndex", "Rooted", "Source", "TarSource", "open_source", "parse_row", "sniff"]

CHAT = "chat.jsonl"
"""The rows of a folder whose media are in a store beside them."""
FRAMES = "frames.qvf"
"""The frame store of such a folder."""


class Source(Protocol):
    """Rows of a data set. Pickles without its contents; forked workers share it."""

    num_bytes: int
    fingerprint: str
    """sha256 (hex) of the rows and their order."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """(row, where it stands). SampleError where it is no row, IndexError where there is none."""

    def where(self, index: int) -> str:
        """Where a row stands, without reading it."""


class Rooted:
    """Rows of a source whose media are in a folder, which they may not leave, or in a store."""

    def __init__(self, source: Source, root: str | os.PathLike):
        self.source, self.root = source, os.fspath(root)
        self.fingerprint, self.num_bytes = source.fingerprint, source.num_bytes
        self._bind = partial(StoredPath if store_kind(self.root) else RootedPath, self.root)

    def __len__(self) -> int:
        return len(self.source)

    def where(self, index: int) -> str:
        return self.source.where(index)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        record, where = self.source[index]
        return with_media(record, self._bind), where


@dataclass(frozen=True)
class SourceKind:
    """How rows of a kind are told from a path, and opened. `has_media`: media lie in what the path names."""

    sniff: Callable[[str], bool]
    open: Callable[[str], Source]
    has_media: bool = True


def _chat_beside(store: str) -> Callable[[str], Source]:
    """Opens `chat.jsonl` of a folder over the store in it ("": the folder itself)."""
    return lambda path: Rooted(JsonlIndex(Path(path, CHAT)), os.path.join(path, store) if store else path)


def _holds_tars(path: str) -> bool:
    return os.path.isdir(path) and any(name.endswith(".tar") for name in os.listdir(path))


SOURCES = {
    "tsv": SourceKind(lambda path: Path(path, ROWS).is_file(), _chat_beside("")),
    "frames": SourceKind(lambda path: is_frame_store(os.path.join(path, FRAMES)), _chat_beside(FRAMES)),
    "tar": SourceKind(lambda path: path.endswith(".tar") or is_remote(path) or _holds_tars(path), TarSource),
    "jsonl": SourceKind(lambda path: True, JsonlIndex, has_media=False),
}
"""Kind -> how it is told and opened. The first that fits is taken, so a plain file comes last."""


def sniff(path: str) -> str:
    """The kind of the data set at a path."""
    return next(kind for kind, row in SOURCES.items() if row.sniff(path))


def open_source(path: str, kind: str | None = None, media_root: str | None = None) -> Source:
    """The rows of the data set at a path.

    `kind`: a row of SOURCES; None: told from what lies there. `media_root`: the folder or store that paths of
    media start at. ValueError for a root of a kind that has its media inside.
    """
    named = lookup(SOURCES, kind or sniff(path), "kind of data set")
    if media_root is None:
        return named.open(path)
    if named.has_media:
        raise ValueError(f"{path} has its media inside; a media_root ({media_root}) has no place")
    return Rooted(named.open(path), media_root)
