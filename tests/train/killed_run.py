"""Runs of the trainer that end by SIGKILL at a chosen instant. A program, so that every run is a process.

    python killed_run.py '[[["--recipe", ...], "rename"], [["--recipe", ...], null], ...]'

Everything is imported once; each job is a fork that knows nothing of the others. Prints the list of their
exit codes, negative for a signal.
"""

import json
import os
import signal
import sys

import transformers

from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.train import checkpoint, llava_trainer, train
from quicksviewer.utils import manifest

INSTANTS = {
    "data": (LazySupervisedDataset, "load", 13),
    "first step": (llava_trainer.LLaVATrainer, "training_step", 1),
    "step": (llava_trainer.LLaVATrainer, "training_step", 4),
    "optimizer": (transformers.Trainer, "_get_learning_rate", 5),
    "weights": (llava_trainer.LLaVATrainer, "_save", 2),
    "optimizer state": (transformers.Trainer, "_save_optimizer_and_scheduler", 2),
    "random state": (transformers.Trainer, "_save_rng_state", 2),
    "place in the data": (checkpoint.DataState, "save", 2),
    "manifest": (manifest, "write_manifest", 2),
    "rename": (os, "rename", 2),
}
"""Name -> what is called at that instant, and at which call the process dies. Every second step is saved."""


def die_at(owner, name: str, at: int) -> None:
    """Replace a function by one that ends the process at its `at`-th call."""
    whole, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(None)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    setattr(owner, name, counted)


def run(argv: list[str], instant: str | None) -> int:
    child = os.fork()
    if child == 0:
        if instant is not None:
            die_at(*INSTANTS[instant])
        os._exit(train.main(argv))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    print(json.dumps([run(argv, instant) for argv, instant in json.loads(sys.argv[1])]))
