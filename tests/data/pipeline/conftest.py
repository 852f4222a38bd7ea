"""A world of small pictures, a tiny BLIP that knows its words, and pipelines over both."""

import json
from pathlib import Path

import pytest
import yaml
from picture_world import make_world

from quicksviewer.data.pipeline import DataPipeline


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("pictures") / "world")


@pytest.fixture
def rows(world) -> list[dict]:
    return [json.loads(line) for line in (world / "pictures/rows.jsonl").read_text().splitlines()]


@pytest.fixture
def write_config(world, tmp_path):
    """Writes a pipeline's YAML over the world, with some sections changed, and gives its path."""

    def write(**sections) -> Path:
        plain = {
            "task_type": "vqa",
            "data_paths": {"train": str(world / "pictures/rows.jsonl")},
            "tokenizer": {"name": str(world / "blip")},
            "dataloader": {"batch_size": 4},
            "logging": {"log_statistics": False},
        }
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(plain | sections))
        return path

    return write


@pytest.fixture
def ready(write_config):
    """A pipeline that is set up, from the changed sections of its YAML."""

    def make(**sections) -> DataPipeline:
        pipeline = DataPipeline(write_config(**sections))
        pipeline.setup()
        return pipeline

    return make
