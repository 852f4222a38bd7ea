"""What a row of a data set must look like: columns and kinds, checked before anything is read from it.

A kind is a function (value, where) that raises SchemaError; kinds are put together like types:

    {"id": TEXT, "image": maybe(PICTURE), "conversations": many(record({"from": TEXT, "value": TEXT}))}

Columns and keys that a schema does not name are ignored: public files carry many more.
"""

from collections.abc import Callable, Mapping
from typing import Any

Kind = Callable[[Any, str], None]
SHOWN_CHARACTERS = 60


class SchemaError(ValueError):
    """A row that is not as its data set promises: where, what was expected, what was found."""


def _shown(value: Any) -> str:
    text = repr(value)
    return (
        f"{text[:SHOWN_CHARACTERS]}{'...' if len(text) > SHOWN_CHARACTERS else ''} ({type(value).__name__})"
    )


def _plain(words: str, *types: type) -> Kind:
    def check(value: Any, where: str) -> None:
        # bool is an int for Python, and no number for a data set.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise SchemaError(f"{where}: expected {words}, got {_shown(value)}")

    check.words = words
    return check


TEXT = _plain("a text", str)
NUMBER = _plain("a number", int, float)
BYTES = _plain("bytes", bytes)
ANY = _plain("anything", object)
IDENTITY = _plain("a text or a number", str, int)


def maybe(kind: Kind) -> Kind:
    """The kind, or null, or no such key."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            kind(value, where)

    check.words, check.optional = f"{kind.words} or null", True
    return check


def many(kind: Kind) -> Kind:
    """A list of the kind; it may be empty."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise SchemaError(f"{where}: expected {check.words}, got {_shown(value)}")
        for place, item in enumerate(value):
            kind(item, f"{where}[{place}]")

    check.words = f"a list ({kind.words} each)"
    return check


def record(kinds: Mapping[str, Kind]) -> Kind:
    """An object with at least these keys."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: expected {check.words}, got {_shown(value)}")
        for key, kind in kinds.items():
            if key not in value and not is_optional(kind):
                raise SchemaError(
                    f"{where}: {key!r} is missing, expected {kind.words}; it has {sorted(value)}"
                )
            kind(value.get(key), f"{where} > {key}")

    check.words = f"an object with {', '.join(kinds)}"
    return check


def either(*kinds: Kind) -> Kind:
    """The first kind that fits; the error is that of all."""

    def check(value: Any, where: str) -> None:
        for kind in kinds:
            try:
                return kind(value, where)
            except SchemaError:
                continue
        raise SchemaError(f"{where}: expected {check.words}, got {_shown(value)}")

    check.words = " or ".join(kind.words for kind in kinds)
    return check


def is_optional(kind: Kind) -> bool:
    return getattr(kind, "optional", False)


TURNS = many(record({"from": TEXT, "value": TEXT}))
PICTURE = record({"bytes": maybe(BYTES), "path": maybe(TEXT)})
"""How Hugging Face data sets keep an image in parquet."""


def check_row(values: Any, schema: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """The columns of the schema, all checked; SchemaError with `where` ("file, row N") otherwise.

    An empty schema takes an object as it is.
    """
    record(schema)(values, where)
    return {column: values.get(column) for column in schema or values}


def check_columns(found: list[str], schema: Mapping[str, Kind], where: str) -> None:
    """SchemaError when a table lacks a column."""
    if missing := [
        column for column, kind in schema.items() if column not in found and not is_optional(kind)
    ]:
        raise SchemaError(f"{where}: column {', '.join(missing)} missing; it has {', '.join(found)}")
