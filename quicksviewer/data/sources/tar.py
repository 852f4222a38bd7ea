"""WebDataset archives as rows: the `.json` member of a sample is the row, its other members are the media.

A sample is what shares a key: the member's name up to the first dot behind its last slash. What a row names
as its image or video is a member of its archive. A row that names none has those of its sample whose ending
tells what they are; one without `uid` has its key.
"""

import hashlib
import os
from functools import partial
from typing import Any

import numpy as np

from quicksviewer.data.sources.rows import LIMITS, MEDIA_KEYS, RowLimits, parse_row, with_media
from quicksviewer.utils.registry import require
from quicksviewer.utils.stores import StoredPath, is_remote, open_store
from quicksviewer.utils.tar_shard import TarShard

ENDINGS = {
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp"),
    "video": ("mp4", "mov", "webm", "mkv", "avi"),
}
"""Key of a row -> endings of the members that it may take from its sample."""


class TarSource:
    """A Source over one archive, or over all archives of a folder in the order of their names.

    `source[i]` is (row, "archive:key"). Media in rows are StoredPath. MediaError for an archive of no use.
    """

    def __init__(self, path: str | os.PathLike, limits: RowLimits = LIMITS):
        self.path, self.limits = os.fspath(path), limits
        self._paths = archives(self.path)
        shards = [open_store(one) for one in self._paths]
        self._rows = [json_rows(shard) for shard in shards]
        self._ends = np.cumsum([len(rows) for rows in self._rows], dtype=np.int64)
        told = "".join(f"{shard.digest}\n" for shard in shards)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()
        """sha256 (hex) of all rows, and of names and sizes of all members."""
        self.num_bytes = int(sum(shard.sizes.sum() for shard in shards))

    def __getstate__(self) -> dict:
        return {"path": self.path, "limits": self.limits, "fingerprint": self.fingerprint}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"], state["limits"])
        if self.fingerprint != state["fingerprint"]:
            raise OSError(f"{self.path} has changed: its archives have other content now")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _find(self, index: int) -> tuple[TarShard, int]:
        """The archive of a row and the member that it is."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self.path}, which has {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[number]) + len(self._rows[number])
        return open_store(self._paths[number]), int(self._rows[number][place])

    def where(self, index: int) -> str:
        """ "archive:key" of a row. IndexError for one that is not there."""
        shard, member = self._find(index)
        return f"{shard.path}:{key_of(shard.names[member])}"

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        """(row, "archive:key"); SampleError where the member is no JSON object or beyond the limits."""
        shard, member = self._find(index)
        key = key_of(shard.names[member])
        where = f"{shard.path}:{key}"
        row = parse_row(shard.read_row(member, self.limits.max_bytes + 1), where, self.limits)
        if not any(name in row for name in MEDIA_KEYS):
            row |= _media_of(shard, member, key)
        return with_media({"uid": key} | row, partial(StoredPath, shard.path)), where


def archives(path: str) -> list[str]:
    """The archives that a path or URL names: itself, or all `*.tar` of a folder. ValueError without one."""
    if path.endswith(".tar"):
        return [path]
    if is_remote(path):
        system, inside = require("fsspec", "data").core.url_to_fs(path)
        found = [system.unstrip_protocol(one) for one in system.glob(f"{inside.rstrip('/')}/*.tar")]
    else:
        found = [os.path.join(path, name) for name in os.listdir(path) if name.endswith(".tar")]
    if not found:
        raise ValueError(f"{path} holds no archive (*.tar)")
    return sorted(found)


def key_of(name: str) -> str:
    """`a/b.c.json` -> `a/b`: the key of the sample that a member belongs to."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def json_rows(shard: TarShard) -> np.ndarray:
    """The members that are rows, in order: int64 (rows,)."""
    names = (shard.names[member] for member in range(len(shard)))
    return np.array([member for member, name in enumerate(names) if _ending(name) == "json"], np.int64)


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _media_of(shard: TarShard, member: int, key: str) -> dict[str, list[str]]:
    """Media among the members around a row that share its key: members of a sample stand together."""
    first = last = member
    while first and key_of(shard.names[first - 1]) == key:
        first -= 1
    while last + 1 < len(shard) and key_of(shard.names[last + 1]) == key:
        last += 1
    names = [shard.names[place] for place in range(first, last + 1)]
    found = {
        kind: [name for name in names if _ending(name).rpartition(".")[2] in endings]
        for kind, endings in ENDINGS.items()
    }
    return {kind: members for kind, members in found.items() if members}
