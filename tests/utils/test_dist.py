"""One process and two: the same calls, a clean exit."""

import random
import subprocess
import sys

import numpy as np
import torch

from quicksviewer.utils.dist import barrier, close_process_group, is_main, rank, seed_everything, world_size

TWO = """
import sys, torch.distributed as dist
from quicksviewer.utils.dist import barrier, close_process_group, is_main, rank, world_size
before = rank(), world_size()
dist.init_process_group("gloo")
try:
    assert before == (rank(), world_size()) == (dist.get_rank(), 2)
    assert is_main() == (rank() == 0)
    barrier()
    if sys.argv[1] == "fail" and rank() == 1:
        raise RuntimeError("one of two")
    dist.barrier()
finally:
    close_process_group()
    assert not dist.is_initialized()
"""


def two(tmp_path, how: str) -> subprocess.CompletedProcess:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        how,
    ]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def test_two_processes_leave_cleanly(tmp_path):
    done = two(tmp_path, "work")
    assert done.returncode == 0, done.stderr


def test_one_that_fails_does_not_wait_for_the_other(tmp_path):
    done = two(tmp_path, "fail")
    assert done.returncode == 1
    assert "RuntimeError: one of two" in done.stderr


def test_alone_every_call_is_harmless(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    barrier()
    close_process_group()
    assert (rank(), world_size(), is_main()) == (0, 1, True)


def test_a_seed_gives_the_same_numbers_everywhere():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert draw() != first
