"""Names and what they stand for: rows of a table, "module:Name" strings, packages that may be absent."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

Row = TypeVar("Row")


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """The end of an error message: a space and the nearest known name, or nothing when none is near."""
    by_lower_case = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f" Did you mean {by_lower_case[close[0]]!r}?" if close else ""


def lookup(table: Mapping[str, Row], name: str, what: str) -> Row:
    """table[name], or an error that names what it could have been."""
    if name in table:
        return table[name]
    known = ", ".join(sorted(map(str, table))) or "none"
    raise ValueError(f"unknown {what} {name!r}.{did_you_mean(name, table)} Known: {known}")


def load_target(target: str) -> Any:
    """What "package.module:Name" points to; the module is imported now. "module:Class.method" works too."""
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise ValueError(f"a target is written 'module:Name', got {target!r}")
    found = importlib.import_module(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            hint = did_you_mean(name, (n for n in dir(found) if not n.startswith("_")))
            raise ValueError(f"{target!r}: {module_name} has no {name!r}.{hint}")
        found = getattr(found, name)
    return found


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that the package itself fails to find is another fault and keeps its own message.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        message = f"{module} is missing: pip install 'quicksviewer[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
