"""Rows {"image": picture, "text": LaTeX} by index, wherever they come from; a picture is opened when its row
is asked for.

A data set is "synthetic", a .jsonl or .parquet file, a folder with SPLIT.jsonl or SPLIT.parquet, or a name on
the hub. A file is one split, called train: what a model is measured on must lie in another.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from quicksviewer.data.preprocess import SampleError
from quicksviewer.data.sources.jsonl import JsonlIndex
from quicksviewer.synthetic.formulas import FormulaConfig, FormulaData
from quicksviewer.utils.image import load_image
from quicksviewer.utils.media import MediaError
from quicksviewer.utils.media_gate import RootedPath
from quicksviewer.utils.registry import require

SYNTHETIC = "synthetic"
SYNTHETIC_ROWS = {"train": 4000, "validation": 200, "test": 400}
COLUMNS = ("image", "text")


class JsonlRows(Sequence):
    """Lines {"image": a path, "text": LaTeX}; paths start at the file's folder and may not leave it."""

    def __init__(self, path: str | os.PathLike):
        self.index, self.root = JsonlIndex(path), str(Path(path).parent)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> dict:
        """SampleError, which names file and line, for a row without a picture and a text."""
        row, where = self.index[range(len(self))[place]]
        for column in COLUMNS:
            if not isinstance(row.get(column), str):
                raise SampleError(
                    where, f"a row needs {column!r}, a text; it has {', '.join(row) or 'nothing'}"
                )
        try:
            return {"image": load_image(RootedPath(self.root, row["image"])), "text": row["text"]}
        except MediaError as error:
            raise SampleError(where, str(error)) from error


def _parquet(path: Path):
    datasets = require("datasets", "zoo")
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train")
    return rows.cast_column("image", datasets.Image()) if "image" in rows.column_names else rows


READERS: dict[str, Callable] = {".jsonl": JsonlRows, ".parquet": _parquet}
"""Suffix of a file -> rows of it."""


def open_rows(name: str | os.PathLike, split: str = "train", max_samples: int | None = None, seed: int = 0):
    """Rows of a split, at most `max_samples`, the first ones. ValueError where there is no such split, no
    row, or where a column is missing."""
    rows = _open(os.fspath(name), split, max_samples, seed)
    if not len(rows):
        raise ValueError(f"{name}, split {split}: there are no rows")
    if missing := [column for column in COLUMNS if column not in rows[0]]:
        raise ValueError(f"{name}: rows need image and text; {missing} are not in {sorted(rows[0])}")
    if max_samples is not None and len(rows) > max_samples:
        return rows.select(range(max_samples)) if hasattr(rows, "select") else First(rows, max_samples)
    return rows


class First(Sequence):
    """The first rows of others."""

    def __init__(self, rows, count: int):
        self.rows, self.count = rows, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> dict:
        return self.rows[range(self.count)[place]]


def _open(name: str, split: str, max_samples: int | None, seed: int):
    if name == SYNTHETIC:
        return FormulaData(split, max_samples or SYNTHETIC_ROWS.get(split, 0), FormulaConfig(), seed)
    path = Path(name)
    if path.is_dir():
        return _of_folder(path, split)
    if path.suffix in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        if split != "train":
            raise ValueError(
                f"{path} is one split, train; for {split!r} give a folder that holds train{path.suffix} and "
                f"{split}{path.suffix}"
            )
        return READERS[path.suffix](path)
    return require("datasets", "zoo").load_dataset(name, split=split)


def _of_folder(folder: Path, split: str):
    for suffix, reader in READERS.items():
        if (path := folder / f"{split}{suffix}").is_file():
            return reader(path)
    names = ", ".join(f"{split}{suffix}" for suffix in READERS)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise ValueError(f"{folder} has no split {split!r}: expected {names}; it holds {found}")
