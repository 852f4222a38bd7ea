"""Tables of all flags and settings, made from the dataclasses that declare them:

python -m quicksviewer.train.flag_tables > docs/flags.md
"""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

import transformers

from quicksviewer.model.config import MultimodalConfig
from quicksviewer.model.processor import MediaConfig
from quicksviewer.train.args import DataArguments, ModelArguments, TrainingArguments

HEAD = """# Flags and settings

Flags of `quicksviewer train`, of the stage scripts and of the sections `shared` and `stageN` of a recipe;
beside them all of transformers' `TrainingArguments` ([training](training.md) says what the common ones do
here). Then the keys of the section `mm`. Made by `python -m quicksviewer.train.flag_tables > docs/flags.md`.
"""

FLAGS = {"The model": ModelArguments, "The data": DataArguments, "The run": TrainingArguments}
"""Title -> dataclass of flags."""


def page() -> str:
    """The whole of docs/flags.md."""
    parts = [HEAD]
    for title, cls in FLAGS.items():
        parts.append(f"## {title}\n\n{_line(cls)}\n\n{_table(cls, own_fields(cls), '--')}\n")
    for at in fields(MultimodalConfig):
        if is_dataclass(at.type):
            parts.append(f"## `mm`: `{at.name}`\n\n{_line(at.type)}\n\n{_table(at.type)}\n")
    text = "Saved in `processor_config.json`; the flags of the data change the first four."
    parts.append(f"## Media\n\n{_line(MediaConfig)} {text}\n\n{_table(MediaConfig)}\n")
    return "\n".join(parts)


def own_fields(cls: type) -> list[Field]:
    """Fields that transformers' arguments do not have, or have with another default."""
    theirs = {f.name: f.default for f in fields(transformers.TrainingArguments)}
    return [f for f in fields(cls) if f.name not in theirs or f.default != theirs[f.name]]


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


def _table(cls: type, chosen: list[Field] | None = None, prefix: str = "") -> str:
    return "\n".join(
        ["| name | default | what |", "|---|---|---|", *_rows(cls, chosen or fields(cls), prefix)]
    )


def _rows(cls: type, chosen: Iterable[Field], prefix: str) -> Iterator[str]:
    texts = field_texts(cls)
    for at in chosen:
        text = " ".join((at.metadata.get("help") or texts[at.name]).split())
        yield f"| `{prefix}{at.name}` | {_default(at)} | {text}{_choices(at)} |"


def _choices(at: Field) -> str:
    """The values that a field of a Literal type may have."""
    return (
        f" One of {', '.join(f'`{v}`' for v in get_args(at.type))}." if get_origin(at.type) is Literal else ""
    )


def _default(at: Field) -> str:
    value: Any = at.default if at.default_factory is MISSING else at.default_factory()
    return "" if value is None or value is MISSING else f"`{value}`"


def _line(cls: type) -> str:
    return inspect.getdoc(cls).split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    print(page(), end="")
