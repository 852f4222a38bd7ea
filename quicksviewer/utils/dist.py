"""The process among its fellows: the same calls work with one process and with many."""

import os
import random
import sys
import time

import numpy as np
import torch
import torch.distributed as dist


def _is_started() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process; before the group exists, what the launcher has said."""
    return dist.get_rank() if _is_started() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size() if _is_started() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait for all processes. One process, or a group not started yet, has nobody to wait for."""
    if not _is_started():
        return
    if dist.get_backend() == "nccl":
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def on_main(function):
    """What a function returns on the first process, told to all. It must not raise: the others would wait."""
    if not _is_started():
        return function()
    told = [function() if is_main() else None]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def seed_everything(seed: int) -> None:
    """The same seed for Python, NumPy and torch on every rank."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def close_process_group() -> None:
    """End the group so that every process can exit; belongs into the `finally` of an entry point.

    While an exception is on its way out, the others may never arrive: nobody is waited for then.
    """
    if not _is_started():
        return
    is_failing, backend = sys.exc_info()[0] is not None, dist.get_backend()
    if not is_failing:
        barrier()
    if backend == "gloo" or not is_failing:  # NCCL would wait for work that a lost process never finishes
        dist.destroy_process_group()
    if backend == "gloo":
        time.sleep(0.5)  # its threads end late, and one that outlives the interpreter aborts the process
