"""What a converter is: a schema, a function from a row to samples, and where its media are.

`convert(row)` says what a row becomes and touches no file. A medium in a sample is one of these, and the task
(`task.py`) turns it into a path:

    "a/b.mp4"       a file below the media root
    Found("b.mp4")  a file below the media root, known by another key (INDEXES)
    Blob(bytes)     bytes of the row, which become a file below the output
    Cached(url)     bytes that the image cache has under this address; nothing is fetched, ever
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from quicksviewer.preprocess.schema import Kind

REASONS = {
    "unreadable": "the row is no JSON",
    "schema": "a column is missing or of another kind",
    "content": "the row has nothing to learn from, as its data set counts that",
    "medium missing": "no such file",
    "medium outside": "the path leaves the media root, or is an address",
    "medium ambiguous": "several files could be meant",
    "medium refused": "damaged, of another format, or too large",
    "medium not at hand": "only an address is known, and the image cache does not have it",
    "sample": "data/preprocess.py refuses the finished sample",
    "cut": "a part of the row was left out, the rest was used",
}
"""Why something is not in the output: the word in the ledger and what it means."""


@dataclass(frozen=True)
class Skipped:
    """A row, or a sample of it, that is left out."""

    reason: str
    detail: str = ""

    def __post_init__(self):
        assert self.reason in REASONS, self.reason


class Skip(Exception):
    """Raised where a medium is resolved; carries a Skipped."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.skipped = Skipped(reason, detail)


@dataclass(frozen=True)
class Found:
    key: str


@dataclass(frozen=True)
class Blob:
    data: bytes


@dataclass(frozen=True)
class Cached:
    url: str


@dataclass(frozen=True)
class Made:
    """A sample and the output files that get it."""

    sample: dict[str, Any]
    parts: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Row(Mapping):
    """The checked columns of a row, and what makes its samples' names unique."""

    columns: Mapping[str, Any]
    prefix: str
    file: str
    number: int
    """Place in its file, from 0."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Contents of the further files that the converter asked for."""

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def uid(self) -> str:
        """Unique in the data set, whatever the row's own id is: public ids repeat."""
        stem = str(PurePosixPath(self.file).with_suffix("")).replace("/", ".")
        return f"{self.prefix}_{stem}_{self.number}"

    def sample(self, data_type: str, *, tail: str = "", parts: tuple[str, ...] = ("",), **fields) -> Made:
        """A sample with its uid and source; the row's own id is kept as metadata.

        `tail` tells the samples of one row apart.
        """
        sample = {"uid": f"{self.uid}{tail}", "data_type": data_type, "source": self.prefix, **fields}
        if self.columns.get("id") is not None:
            sample["metadata"] = {"id": self.columns["id"]}
        return Made({key: value for key, value in sample.items() if value is not None}, parts)

    def asked(self, question: str, answer: str, **rest) -> Made:
        """A sample of one question and its answer."""
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return self.sample("conversations", conversations=turns, **rest)


@dataclass(frozen=True)
class Converter:
    """A row of the table of converters."""

    name: str
    reads: str
    """What its input is called in public."""
    schema: Mapping[str, Kind]
    convert: Callable[[Row], Iterable[Made | Skipped]]
    media: Literal["files", "rows", "none"] = "files"
    """Where the media are: files below the media root, bytes inside the rows, or nowhere that matters."""
    json_form: Literal["rows", "mapping", "object"] = "rows"
    """A .json file is a list of rows, an object of rows by key (column "_key"), or one row."""
    index: str | None = None
    """How files are known by Found: a name of task's INDEXES."""
    parts: tuple[str, ...] = ("",)
    """Output files: the name of the job with each of these behind it."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """Further JSON files that it needs: word -> what it is called in public."""
    gif: bool = False
    """Its videos are GIF files, which become mp4 files below the output."""
    keeps_paths: bool = False
    """Paths are checked and stay as they are written."""

    def __post_init__(self):
        assert not (self.index and self.media != "files"), self.name


def cache_name(url: str) -> str:
    """Where the image cache keeps what came from an address: two digits, then the SHA-256 of the address."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return f"{digest[:2]}/{digest}"
