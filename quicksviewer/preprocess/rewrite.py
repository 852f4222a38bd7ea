"""Rows of this project in, rows of this project out: what `change_datasets` does to its files."""

import re
from collections.abc import Iterator
from typing import Any

from quicksviewer.preprocess.converter import Converter, Made, Row


def _whole(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def keep(row: Row) -> Iterator[Made]:
    """The row as it is; what cannot be used is found when its media and its turns are checked."""
    yield Made(_whole(row))


def change_path(row: Row) -> Iterator[Made]:
    """The row with each match of `src_ptr` in the paths of `fields` replaced by `tgt_str`."""
    pattern, sample = re.compile(row.extras["src_ptr"]), _whole(row)

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(item) for item in value]
        return pattern.sub(row.extras["tgt_str"], value) if isinstance(value, str) else value

    yield Made(sample | {key: changed(sample[key]) for key in row.extras["fields"] if key in sample})


FILTER = Converter("filter", "rows of this project", {}, keep, keeps_paths=True)
CHANGE_PATH = Converter(
    "change_path", "rows of this project", {}, change_path, media="none", keeps_paths=True
)
