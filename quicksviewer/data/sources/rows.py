"""One line of JSON becomes a row, within limits: what a file from elsewhere may ask of memory and time."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from quicksviewer.data.preprocess import SampleError
from quicksviewer.utils.media_gate import DATA_URL

MEDIA_KEYS = ("image", "video", "video_id")
"""Fields of a row that name media."""


def with_media(row: dict[str, Any], bind: Callable[[str], str]) -> dict[str, Any]:
    """A row whose media are what `bind` makes of their names. A data URL holds its medium and has no name;
    values of a wrong type are left as they are."""

    def bound(value: Any) -> Any:
        if isinstance(value, list):
            return [bound(item) for item in value]
        is_name = isinstance(value, str) and value and not DATA_URL.match(value)
        return bind(value) if is_name else value

    return row | {key: bound(row[key]) for key in MEDIA_KEYS if key in row}


@dataclass(frozen=True, kw_only=True)
class RowLimits:
    """What one row may hold."""

    max_bytes: int = 8 << 20
    max_depth: int = 32
    """Objects and lists inside each other."""
    max_keys: int = 1 << 16
    """Of all objects of the row together."""
    max_integer: int = 2**63 - 1

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1, got {getattr(self, field.name)}")


LIMITS = RowLimits()
STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
SHOWN = 40
"""Letters of a wrong number that a message repeats."""


class _Hooks:
    """What json calls while it reads one row."""

    def __init__(self, limits: RowLimits):
        self.limits, self.keys = limits, 0

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ValueError(f"key {twice[:SHOWN]!r} is set twice")
        self.keys += len(pairs)
        if self.keys > self.limits.max_keys:
            raise ValueError(f"more than {self.limits.max_keys} keys")
        return values

    def integer(self, text: str) -> int:
        # The length first: reading a number takes time that grows with the square of its digits.
        if len(text) > 20 or abs(value := int(text)) > self.limits.max_integer:
            raise ValueError(f"the integer {text[:SHOWN]} is beyond {self.limits.max_integer}")
        return value

    def real(self, text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text[:SHOWN]} is no number of JSON that a float can hold")
        return value

    def constant(self, name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")


def parse_row(line: bytes, where: str, limits: RowLimits = LIMITS) -> dict[str, Any]:
    """The object on a line of a JSONL file; SampleError with `where` and the column if there is none."""
    if len(line) > limits.max_bytes:
        raise SampleError(where, f"{len(line)} bytes, the limit of a row is {limits.max_bytes}")
    if depth := _too_deep(line, limits.max_depth):
        raise SampleError(where, f"not readable as JSON: {depth} levels deep, the most is {limits.max_depth}")
    hooks = _Hooks(limits)
    try:
        row = json.loads(
            line.decode("utf-8").rstrip(),
            object_pairs_hook=hooks.object,
            parse_int=hooks.integer,
            parse_float=hooks.real,
            parse_constant=hooks.constant,
        )
    except json.JSONDecodeError as error:
        raise SampleError(where, f"not readable as JSON, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise SampleError(where, f"not UTF-8, byte {error.start + 1} of the line") from error
    except (ValueError, RecursionError) as error:
        raise SampleError(where, f"not readable as JSON: {error}") from error
    if not isinstance(row, dict):
        raise SampleError(where, f"a row must be an object, got {type(row).__name__}")
    return row


def _too_deep(line: bytes, limit: int) -> int:
    """How deep the row goes where that is too much, else 0. Counting brackets settles most."""
    if line.count(b"{") + line.count(b"[") <= limit:
        return 0
    depth = deepest = 0
    for sign in re.findall(rb"[\[\]{}]", STRINGS.sub(b"", line)):
        depth += 1 if sign in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest if deepest > limit else 0
