"""Logging by rank, models without their random start."""

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from quicksviewer.utils.utils import INITIALISED, disable_torch_init, get_logger

SPEAK = """
from quicksviewer.utils.utils import get_logger
for _ in range(2):
    logger = get_logger("quicksviewer.train.train")
logger.info("an " + "information " * 20)
logger.warning("a warning")
get_logger("__main__").warning("from outside")
"""


@pytest.mark.parametrize(("rank", "lines"), [(None, 3), ("0", 3), ("1", 2)])
def test_rank_zero_says_all_and_the_others_warn(monkeypatch, rank, lines):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    done = subprocess.run([sys.executable, "-c", SPEAK], check=True, capture_output=True, text=True)
    said = done.stderr.splitlines()
    assert done.stdout == ""
    assert len(said) == lines, said
    assert said[-2].endswith("WARNING [rank 1] a warning" if rank == "1" else "WARNING a warning")


def test_all_loggers_are_children_of_one():
    root = get_logger()
    assert get_logger("quicksviewer.data.dataset").parent is root
    assert get_logger("__main__").parent is root
    assert len(root.handlers) == 1
    assert root is logging.getLogger("quicksviewer")


def same_numbers_drawn(make) -> bool:
    """Whether making something leaves the random state as it was."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make()
    return torch.equal(before, torch.get_rng_state())


MAKERS = {
    nn.Linear: lambda: nn.Linear(4, 4),
    nn.LayerNorm: lambda: nn.LayerNorm(4),
    nn.Embedding: lambda: nn.Embedding(4, 4),
}


@pytest.mark.parametrize("kind", INITIALISED)
def test_inside_nothing_is_initialised_and_outside_all_is(kind, monkeypatch):
    calls = []
    original = kind.reset_parameters
    monkeypatch.setattr(kind, "reset_parameters", lambda self: (calls.append(self), original(self)))
    watched = kind.reset_parameters
    with disable_torch_init():
        assert same_numbers_drawn(MAKERS[kind])
        assert calls == []
    assert kind.reset_parameters is watched
    MAKERS[kind]()
    assert len(calls) == 1


def test_the_initialisers_come_back_after_an_error_and_after_nesting():
    originals = [kind.reset_parameters for kind in INITIALISED]
    with pytest.raises(RuntimeError, match="stop"), disable_torch_init(), disable_torch_init():
        raise RuntimeError("stop")
    assert [kind.reset_parameters for kind in INITIALISED] == originals
