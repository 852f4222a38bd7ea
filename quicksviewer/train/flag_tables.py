"""Tables of all flags and settings, made from the dataclasses that declare them:

python -m quicksviewer.train.flag_tables > docs/flags.md
"""

from dataclasses import Field, fields, is_dataclass

import transformers

from quicksviewer.model.config import MultimodalConfig
from quicksviewer.model.processor import MediaConfig
from quicksviewer.train.args import DataArguments, ModelArguments, TrainingArguments
from quicksviewer.utils.setting_tables import class_line, table

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
        parts.append(f"## {title}\n\n{class_line(cls)}\n\n{table(cls, own_fields(cls), '--')}\n")
    for at in fields(MultimodalConfig):
        if is_dataclass(at.type):
            parts.append(f"## `mm`: `{at.name}`\n\n{class_line(at.type)}\n\n{table(at.type)}\n")
    text = "Saved in `processor_config.json`; the flags of the data change the first four."
    parts.append(f"## Media\n\n{class_line(MediaConfig)} {text}\n\n{table(MediaConfig)}\n")
    return "\n".join(parts)


def own_fields(cls: type) -> list[Field]:
    """Fields that transformers' arguments do not have, or have with another default."""
    theirs = {f.name: f.default for f in fields(transformers.TrainingArguments)}
    return [f for f in fields(cls) if f.name not in theirs or f.default != theirs[f.name]]


if __name__ == "__main__":
    print(page(), end="")
