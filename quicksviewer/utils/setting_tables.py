"""Tables of settings in markdown, made from the dataclasses that declare them."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin


def table(
    cls: type, chosen: Iterable[Field] | None = None, prefix: str = "", shown: Callable[[Any], str] = str
) -> str:
    """A row for each field: name, default, the text below it in the source (or its help), its choices.

    `chosen`: some of the fields, else all. `shown`: how a default is written.
    """
    return "\n".join(
        ["| name | default | what |", "|---|---|---|", *rows(cls, chosen or fields(cls), prefix, shown)]
    )


def rows(
    cls: type, chosen: Iterable[Field], prefix: str = "", shown: Callable[[Any], str] = str
) -> Iterator[str]:
    """The rows of `table`, without its head."""
    texts = field_texts(cls)
    for at in chosen:
        text = " ".join((at.metadata.get("help") or texts[at.name]).split())
        yield f"| `{prefix}{at.name}` | {_default(at, shown)} | {text}{_choices(at)} |"


def field_texts(cls: type) -> dict[str, str]:
    """Field -> the string below it in the source of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        above.target.id: inspect.cleandoc(below.value.value)
        for above, below in zip(body, body[1:], strict=False)
        if isinstance(above, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def class_line(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return inspect.getdoc(cls).split("\n\n")[0].replace("\n", " ")


def _choices(at: Field) -> str:
    """The values that a field of a Literal type may have."""
    return (
        f" One of {', '.join(f'`{v}`' for v in get_args(at.type))}." if get_origin(at.type) is Literal else ""
    )


def _default(at: Field, shown: Callable[[Any], str]) -> str:
    value: Any = at.default if at.default_factory is MISSING else at.default_factory()
    return "" if value is None or value is MISSING else f"`{shown(value)}`"
