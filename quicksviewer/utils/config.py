"""Settings: read a YAML or JSON mapping, build frozen dataclasses from it, write them back.

Reading is strict where a typo costs a run: a key said twice, a key nobody declared, a value of another type.
YAML scalars follow the 1.2 core rules, so that `1e-3` is a number and `no`, `1:30` and `2024-01-01` are text.
"""

import json
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from quicksviewer.utils.registry import did_you_mean

__all__ = ["build", "did_you_mean", "load_mapping", "save_json", "to_plain"]

Config = TypeVar("Config")


# --- reading ---


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2 and without duplicate keys."""

    yaml_implicit_resolvers: dict = {}

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        first_line: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            mark, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if mark in first_line:
                before = first_line[mark]
                raise ValueError(
                    f"{self.name}, line {line}: key {key.value!r} is already set in line {before}"
                )
            first_line[mark] = line
        return node


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _read_yaml(text: str, name: str) -> Any:
    loader = _StrictLoader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not readable as YAML: {error}") from error
    finally:
        loader.dispose()


class _SaidTwice(Exception):
    """A JSON object with one key twice; its reader does not know the line."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) != len(pairs):
        raise _SaidTwice
    return values


def _read_json(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}, line {error.lineno}: not readable as JSON: {error.msg}") from error
    except _SaidTwice:
        _read_yaml(text.replace("\t", " "), name)  # JSON is YAML but for tabs, and this reader knows the line
        raise ValueError(f"{name}: a key is set twice") from None


_READERS = {".yaml": _read_yaml, ".yml": _read_yaml, ".json": _read_json}


def load_mapping(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds; the suffix decides which."""
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(_READERS)}, got {path.suffix!r}")
    values = reader(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: the top level must be a mapping, got {type(values).__name__}")
    return values


# --- building ---


def build(cls: type[Config], mapping: Mapping[str, Any], where: str) -> Config:
    """A dataclass, possibly with others inside, from plain values. `where` is what errors call the place.

    Lists become tuples where a tuple is declared, integers become floats, text becomes a path; nothing else
    is converted, and an instance that is already built is taken as it is.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where}: expected a mapping for {cls.__name__}, got {_shown(mapping)}")
    declared: dict[str, Field] = {f.name: f for f in fields(cls) if f.init}
    for key in mapping:
        if key not in declared:
            hint = did_you_mean(key, declared)
            raise ValueError(
                f"{where}: {cls.__name__} has no {key!r}.{hint} It has: {', '.join(sorted(declared))}"
            )
    missing = [name for name, f in declared.items() if name not in mapping and _is_required(f)]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {', '.join(map(repr, missing))}")
    hints = typing.get_type_hints(cls)
    values = {key: _convert(value, hints[key], f"{where} > {key}") for key, value in mapping.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` declares, or an error that shows both."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin in (Union, types.UnionType):
        return _convert_union(value, hint, where)
    if origin is Literal:
        return _convert_literal(value, hint, where)
    container = origin or hint
    if container in (tuple, list):
        return _convert_sequence(value, hint, container, where)
    if isinstance(container, type) and issubclass(container, Mapping):
        return _convert_mapping(value, hint, where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, hint: Any, where: str) -> Any:
    """The alternative that takes the value without changing its type, else the first that takes it at all."""
    alternatives = typing.get_args(hint)
    if value is None and type(None) in alternatives:
        return None
    alternatives = [a for a in alternatives if a is not type(None)]
    if len(alternatives) == 1:
        return _convert(value, alternatives[0], where)
    taken = []
    for alternative in alternatives:
        try:
            taken.append(_convert(value, alternative, where))
        except ValueError:
            continue
    if not taken:
        raise _refused(value, hint, where)
    return next((t for t in taken if type(t) is type(value)), taken[0])


def _convert_literal(value: Any, hint: Any, where: str) -> Any:
    choices = typing.get_args(hint)
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return value
    known = ", ".join(map(repr, choices))
    raise ValueError(f"{where}: {value!r} is not a choice.{did_you_mean(value, choices)} Known: {known}")


def _convert_sequence(value: Any, hint: Any, container: type, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _refused(value, hint, where)
    inner = typing.get_args(hint)
    if container is tuple and inner and inner[-1] is not Ellipsis:
        if len(inner) != len(value):
            raise ValueError(f"{where}: expected {len(inner)} values, got {len(value)}: {value!r}")
    else:
        inner = (inner[:1] or (Any,)) * len(value)
    return container(
        _convert(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, inner, strict=True))
    )


def _convert_mapping(value: Any, hint: Any, where: str) -> dict:
    if not isinstance(value, Mapping):
        raise _refused(value, hint, where)
    of_key, of_value = typing.get_args(hint) or (Any, Any)
    return {_convert(k, of_key, where): _convert(v, of_value, f"{where} > {k}") for k, v in value.items()}


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint in (type(None), None) and value is None:
        return None
    # bool is a subclass of int, and `true` is no number of steps.
    if (
        not isinstance(hint, type)
        or not isinstance(value, hint)
        or (type(value) is bool and hint is not bool)
    ):
        raise _refused(value, hint, where)
    return value


def _refused(value: Any, hint: Any, where: str) -> ValueError:
    wanted = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return ValueError(f"{where}: expected {wanted.replace('typing.', '')}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"


# --- writing ---


def to_plain(obj: Any) -> Any:
    """`obj` in the types that JSON knows: what `build` turns back into the same dataclass."""
    if is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_plain(getattr(obj, f.name)) for f in fields(obj) if f.init}
    if isinstance(obj, Mapping):
        return {str(key): to_plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [to_plain(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if obj is None or isinstance(obj, (bool, int, float, str)):
        return obj
    raise TypeError(f"no plain form for a {type(obj).__name__}: {obj!r}")


def save_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj` so that a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    text = json.dumps(to_plain(obj), indent=2, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
