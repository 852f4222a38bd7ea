"""What a step leaves to read: CSV logs that grow run by run, results of each picture, the run's name."""

import csv
import math
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quicksviewer.utils.config import save_json

RUN = "run_id"
"""Last column of every log: rows of one run belong together, also in a file that several wrote."""


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_id() -> str:
    """A name that sorts by time and is no other run's."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class CsvLog:
    """A CSV file with fixed columns, then `run_id`; the header is written once, rows are appended.

    Made before the work begins, so that a file of other columns is refused while nothing is lost by it.
    """

    def __init__(self, path: Path, columns: Sequence[str], run_id: str):
        self.path, self.columns, self.run_id = path, ("timestamp", *columns, RUN), run_id
        if path.is_file() and path.stat().st_size:
            with path.open(newline="", encoding="utf-8") as file:
                header = next(csv.reader(file))
            if tuple(header) != self.columns:
                raise ValueError(
                    f"{path} has the columns {','.join(header)}, expected {','.join(self.columns)}; "
                    "move it away or name another file"
                )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(self.columns)

    def add(self, values: Mapping[str, Any]) -> None:
        """One row. `values` must have exactly the columns but timestamp and run_id."""
        row = {"timestamp": now(), **values, RUN: self.run_id}
        if set(row) != set(self.columns):
            raise ValueError(f"a row of {self.path} needs {self.columns}, got {tuple(row)}")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([_cell(row[name]) for name in self.columns])


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def save_results(path: Path, run_id: str, figures: Mapping, samples: Sequence[Mapping]) -> None:
    """Figures of an evaluation and a record of each picture, as JSON; a figure that is not a number is
    null."""
    plain = {"run_id": run_id, "timestamp": now(), "figures": figures, "samples": samples}
    save_json(path, _without_nan(plain))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
