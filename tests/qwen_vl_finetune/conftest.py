"""Tiny Qwen2.5-VL checkpoints, one with Qwen's own tokenizer and one with a learned one, made once."""

import pytest

from quicksviewer.qwen_vl_finetune.load import load
from quicksviewer.qwen_vl_finetune.tiny_base import BaseConfig, make_base
from quicksviewer.synthetic.formulas import FormulaData


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Folder of a checkpoint with a learned vocabulary and random weights."""
    return make_base(tmp_path_factory.mktemp("small") / "base", BaseConfig(width=32, steps=0, texts=100))


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Folder of a checkpoint with Qwen's own tokenizer and random weights."""
    config = BaseConfig(width=32, steps=0, texts=10, tokenizer="real")
    return make_base(tmp_path_factory.mktemp("real") / "base", config)


@pytest.fixture(scope="session")
def real_processor(real):
    return load(real, bits=16, device="cpu").processor


@pytest.fixture
def loaded(small):
    """The small model with all bits, and its processor."""
    return load(small, bits=16, device="cpu")


@pytest.fixture(scope="session")
def formulas():
    """Twelve formulas of the training split, with pictures of several sizes."""
    return FormulaData("train", 12)
