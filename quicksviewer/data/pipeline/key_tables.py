"""The section of docs/pipeline.md that lists every key of a pipeline's YAML, made from its dataclasses:

python -m quicksviewer.data.pipeline.key_tables --write docs/pipeline.md
"""

import argparse
import sys
from dataclasses import Field, fields, is_dataclass
from pathlib import Path

from quicksviewer.data.pipeline.config import PipelineConfig
from quicksviewer.data.pipeline.transforms import IMAGE_STEPS, TEXT_STEPS
from quicksviewer.utils.setting_tables import class_line, rows, table

HEAD = """## Every key

Made by `python -m quicksviewer.data.pipeline.key_tables --write docs/pipeline.md`. What has no default is
not given, or has to be.
"""
STEPS = {"texts": TEXT_STEPS, "pictures": IMAGE_STEPS}


def section() -> str:
    """The last section of the page, with its heading."""
    parts = [HEAD, _table(PipelineConfig)]
    for at in fields(PipelineConfig):
        if is_dataclass(at.type):
            parts += [f"\n### `{at.name}`\n\n{class_line(at.type)}\n", _table(at.type)]
        if at.name == "preprocessing":
            named = [
                f"Of {what}: {', '.join(f'`{name}`' for name in steps)}." for what, steps in STEPS.items()
            ]
            parts.append("\n" + " ".join(named))
    return "\n".join(parts) + "\n"


def _table(cls: type) -> str:
    """A section's own keys, and those of the mappings in it under their whole name."""
    lines = [table(cls, _plain(cls), shown=_yaml)]
    if cls is not PipelineConfig:
        inner = [at for at in fields(cls) if is_dataclass(at.type)]
        lines += [row for at in inner for row in rows(at.type, fields(at.type), f"{at.name} > ", _yaml)]
    return "\n".join(lines)


def _plain(cls: type) -> list[Field]:
    return [at for at in fields(cls) if not is_dataclass(at.type)]


def _yaml(value) -> str:
    """A default as a YAML file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0."""
    parser = argparse.ArgumentParser(prog="quicksviewer.data.pipeline.key_tables")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put it in the place of the page's last section"
    )
    page = parser.parse_args(argv).write
    if page is None:
        print(section(), end="")
        return 0
    text, _, _ = page.read_text(encoding="utf-8").partition(HEAD.splitlines()[0] + "\n")
    page.write_text(text + section(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
