"""JSON configurations of the pipelines: read, checked, paths made whole.

A key that nobody declared is warned about with what was meant, since users keep notes and older keys in these
files; a required key that is missing, or a value of another type, is an error.
"""

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from quicksviewer.utils.config import build, did_you_mean, load_mapping
from quicksviewer.utils.registry import lookup
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

Config = TypeVar("Config", bound="PathsConfig")

ROOT = "/root/autodl-tmp"
"""Where seed 001 lies on its author's machine; every configuration may say otherwise."""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
DTYPES = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"}
"""How a dtype may be written -> its name in torch."""


@dataclass(frozen=True, kw_only=True)
class PathsConfig:
    """Where a step reads and writes. An absolute path is taken as it is."""

    working_dir: str = ROOT
    """What relative paths of inputs (model, data) start from; itself relative to where the step is called."""
    output_root: str | None = None
    """What relative paths of outputs start from; None: working_dir."""
    data_root: str = "data"

    def source(self, path: str) -> Path:
        return Path(self.working_dir).expanduser() / path

    def output(self, path: str) -> Path:
        return Path(self.output_root or self.working_dir).expanduser() / path

    @property
    def data(self) -> Path:
        """Annotations and the paths in them start from here."""
        return self.source(self.data_root)

    def model(self, path: str) -> str:
        """A model's folder, or, where there is none of that name, a name on the hub (OWNER/NAME).

        FileNotFoundError for what can be neither.
        """
        if (folder := self.source(path)).is_dir():
            return str(folder)
        if HUB_NAME.fullmatch(path):
            return path
        raise FileNotFoundError(f"no model at {folder}")


def read(cls: type[Config], path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """A configuration of class `cls` from a JSON file, `overrides` on top.

    Raises ValueError as `utils.config.build` does; FileNotFoundError with the path.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no configuration {path}; --config names a JSON file")
    values = load_mapping(path) | dict(overrides or {})
    return build(cls, known_part(cls, values, str(path)), str(path))


def known_part(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` without the keys that `cls` does not declare, inner mappings likewise; each is warned
    about."""
    hints, kept = typing.get_type_hints(cls), {}
    declared = [f.name for f in fields(cls) if f.init]
    for key, value in values.items():
        if key not in declared:
            logger.warning("%s: nothing reads %r.%s", where, key, did_you_mean(key, declared))
            continue
        kept[key] = _inner(hints[key], value, f"{where} > {key}")
    return kept


def _inner(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
        return known_part(hint, value, where)
    of = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and is_dataclass(of[0]) and isinstance(value, list):
        return [_inner(of[0], each, f"{where}[{place}]") for place, each in enumerate(value)]
    return value


def dtype_named(name: str) -> str:
    """torch's name of a dtype of a configuration. ValueError for others: float16 would need its gradients
    scaled."""
    return lookup(DTYPES, name, "dtype")


# --- checks that several configurations share ---


def check_positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)}")


def check_share(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(config, name)}")


def warn_where_stored_differs(config: Any, stored: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """What a checkpoint was trained with wins over what a configuration says of it; differences are told."""
    for name in names:
        said = getattr(config, name)
        said = list(said) if isinstance(said, tuple) else said
        if said is not None and said != stored[name]:
            logger.warning("%s: the checkpoint was trained with %s, not %s", name, stored[name], said)
