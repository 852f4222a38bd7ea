"""What happens to tasks whose process dies, and to unknown runners."""

import os
from functools import partial

import pytest

from quicksviewer.preprocess.runner import WorkerDied, run


def test_a_process_that_dies_is_an_error_and_no_hang():
    with pytest.raises(WorkerDied, match="a worker process died"):
        list(run([partial(os._exit, 3)] * 2, "local", 2))


def test_results_carry_the_place_of_their_task():
    tasks = [partial(dict, value=value) for value in "abc"]
    for workers in (1, 2):
        assert sorted(run(tasks, "local", workers)) == [(i, {"value": v}) for i, v in enumerate("abc")]


def test_an_unknown_runner_is_told():
    with pytest.raises(ValueError, match="unknown runner 'slurm'"):
        list(run([], "slurm", 1))
