"""Every test runs on one core of a CPU, offline, and starts from the same seeds."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    DS_ACCELERATOR="cpu",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)

import logging

import pytest
import torch

from quicksviewer.utils.dist import seed_everything
from quicksviewer.utils.utils import get_logger

torch.set_num_threads(1)
get_logger()
logging.getLogger("quicksviewer").propagate = True  # so that caplog sees it


@pytest.fixture(autouse=True)
def seeds():
    seed_everything(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a small synthetic corpus and tiny checkpoints of every family, made once."""
    from tiny_world import make_folder

    return make_folder(tmp_path_factory.mktemp("tiny"))
