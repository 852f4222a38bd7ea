"""docs/flags.md is what the dataclasses say, whole."""

from dataclasses import fields
from pathlib import Path

import pytest
import transformers

from quicksviewer.model.config import CubingConfig, CubingKind
from quicksviewer.train.args import DataArguments, ModelArguments, TrainingArguments
from quicksviewer.train.flag_tables import page
from quicksviewer.utils.setting_tables import field_texts

PAGE = Path(__file__).parents[2] / "docs/flags.md"


def test_the_page_is_the_one_that_is_made():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run python -m quicksviewer.train.flag_tables > docs/flags.md"
    )


@pytest.mark.parametrize("cls", [ModelArguments, DataArguments, TrainingArguments])
def test_every_flag_of_ours_has_a_row(cls):
    theirs = {f.name for f in fields(transformers.TrainingArguments)}
    rows = [line.split("`")[1] for line in page().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.startswith("--")].count("--output_dir") == 0  # transformers' own
    for f in fields(cls):
        assert rows.count(f"--{f.name}") == (f.name not in theirs or f.name == "remove_unused_columns")


def test_a_row_has_default_text_and_choices():
    kind = next(line for line in page().splitlines() if line.startswith("| `kind` | `momentum`"))
    assert field_texts(CubingConfig)["kind"] in kind
    assert kind.endswith(f"One of {', '.join(f'`{name}`' for name in CubingKind.__args__)}. |")
