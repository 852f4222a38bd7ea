"""docs/pipeline.md: its last section is what the dataclasses say, and its YAML is a pipeline's."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml

from quicksviewer.data.pipeline.config import PipelineConfig
from quicksviewer.data.pipeline.key_tables import main, section
from quicksviewer.data.pipeline.sources import SOURCES
from quicksviewer.data.pipeline.tasks import TASKS
from quicksviewer.utils.config import build

PAGE = Path(__file__).parents[3] / "docs/pipeline.md"
TEXT = PAGE.read_text(encoding="utf-8")
TOLD = "run python -m quicksviewer.data.pipeline.key_tables --write docs/pipeline.md"


def test_the_last_section_is_the_one_that_is_made(tmp_path, capsys):
    assert TEXT.endswith(section()), TOLD
    assert main([]) == 0 and capsys.readouterr().out == section()
    old = tmp_path / "page.md"
    old.write_text(TEXT.replace("| `batch_size` |", "| `batch_sise` |"), encoding="utf-8")
    assert main(["--write", str(old)]) == 0 and old.read_text(encoding="utf-8") == TEXT


def keys(cls: type) -> list[str]:
    """Names of a dataclass's keys, those of mappings under their whole name."""
    inner = [f"{f.name} > {key}" for f in fields(cls) if is_dataclass(f.type) for key in keys(f.type)]
    return [f.name for f in fields(cls) if not is_dataclass(f.type)] + inner


def test_every_key_has_a_row_in_its_section():
    _, *sections = section().split("\n### ")
    found = {}
    for text in sections:
        found[text.split("`")[1]] = re.findall(r"^\| `(.+?)` \|", text, flags=re.M)
    assert found == {f.name: keys(f.type) for f in fields(PipelineConfig) if is_dataclass(f.type)}


def test_yaml_of_the_page_is_that_of_a_pipeline():
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.S)
    assert build(PipelineConfig, yaml.safe_load(text), "page").tokenizer.name == "checkpoints/my_blip"


def test_every_task_and_source_is_told():
    for name in TASKS:
        assert f"| `{name}` |" in TEXT
    for name in SOURCES:
        assert re.search(rf"^\| `?{name}`? \|", TEXT, flags=re.M | re.I), name
