"""Files of a job through fsspec, local or in an object store. A file appears whole or not at all."""

import glob
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

from quicksviewer.utils.registry import require

ASIDE = ".aside"
"""Ending of a local file while it is written."""
DATA_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv")


@dataclass(frozen=True)
class Place:
    """A folder: a local path, or a URL that fsspec knows. Paths of its methods are relative to it."""

    url: str

    @cached_property
    def _home(self):
        return require("fsspec.core", "data").url_to_fs(self.url)

    def __reduce__(self):
        return Place, (self.url,)

    @property
    def is_local(self) -> bool:
        protocol = self._home[0].protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    @property
    def is_in_memory(self) -> bool:
        return self._home[0].protocol == "memory"

    @property
    def root(self) -> str:
        """The path of the folder, without the protocol."""
        return self._home[1].rstrip("/") or "/"

    def path(self, name: str = "") -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def shown(self, name: str) -> str:
        """How a person would name a file of it: a path, or a URL."""
        return self.path(name) if self.is_local else f"{self.url.rstrip('/')}/{name}"

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.url.rstrip('/')}/{name}")

    def exists(self, name: str = "") -> bool:
        return self._home[0].exists(self.path(name))

    def is_folder(self) -> bool:
        return self._home[0].isdir(self.root)

    def open(self, name: str = "") -> BinaryIO:
        return self._home[0].open(self.path(name), "rb")

    def read(self, name: str = "", begin: int | None = None, end: int | None = None) -> bytes:
        return self._home[0].cat_file(self.path(name), start=begin, end=end)

    def size(self, name: str = "") -> int:
        return self._home[0].size(self.path(name))

    def names(self) -> list[str]:
        """All files below, relative and sorted; none when there is no such folder."""
        fs, root = self._home
        found = fs.find(root) if fs.exists(root) else []
        return sorted(os.path.relpath(path, self.root) for path in found)

    def remove(self, name: str = "") -> None:
        """A file or a folder with all that is in it; nothing happens when it is not there."""
        fs = self._home[0]
        if fs.exists(self.path(name)):
            fs.rm(self.path(name), recursive=True)

    @contextmanager
    def writing(self, name: str, shared: bool = False) -> Iterator[BinaryIO]:
        """A file to write to; it gets its name at the end, and does not after an error.

        `shared`: several tasks may write it at the same time, each the same bytes.
        """
        fs, target = self._home[0], self.path(name)
        if self.is_local:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            aside = f"{target}.{uuid.uuid4().hex}{ASIDE}" if shared else f"{target}{ASIDE}"
            try:
                with open(aside, "wb") as file:
                    yield file
                os.replace(aside, target)
            finally:
                if os.path.exists(aside):
                    os.unlink(aside)
            return
        # An upload that breaks off must not be closed into a short object, so it starts when all is written.
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            fs.makedirs(os.path.dirname(target), exist_ok=True)
            fs.put_file(file.name, target)

    def write(self, name: str, data: bytes, shared: bool = False) -> None:
        with self.writing(name, shared) as file:
            file.write(data)


def data_files(inputs: tuple[str, ...]) -> list[Place]:
    """The files that the words of `--input` name: files, folders (all data files below), patterns with *."""
    found = []
    for word in inputs:
        place = Place(os.path.abspath(word) if "://" not in word else word)
        fs, path = place._home
        if glob.has_magic(path):
            names = sorted(fs.glob(path))
        elif fs.isdir(path):
            names = [name for name in sorted(fs.find(path)) if name.endswith(DATA_SUFFIXES)]
        else:
            names = [path] if fs.exists(path) else []
        if not names:
            raise ValueError(f"no data at {word}: expected a file, a folder or a pattern, of {DATA_SUFFIXES}")
        found += [Place(fs.unstrip_protocol(name) if "://" in word else name) for name in names]
    return found
