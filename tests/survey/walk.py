"""A data set read as a run reads it: ranks, data workers and epochs, each process a real one."""

import ctypes
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from quicksviewer.data import dataset as dataset_module
from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.data.stream import SampleStream, Share, StepSampler, shuffled
from quicksviewer.model.processor import QuicksviewerProcessor

STEP_ROWS = 4


def obey_permissions() -> None:
    """Give up what lets root read files that it may not read (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    if os.getuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for place in (0, 1):  # effective and permitted, of the lower 32 capabilities
        sets[place] &= ~0b110
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def count_decoding(log: Path) -> None:
    """From now on every look at a medium leaves a line in `log`."""

    def noted(call, path_of):
        def wrapped(*args, **kwargs):
            fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{os.getpid()} {os.path.basename(str(path_of(args)))[:60]}\n".encode())
            os.close(fd)
            return call(*args, **kwargs)

        return wrapped

    QuicksviewerProcessor.load = noted(QuicksviewerProcessor.load, lambda args: args[2])
    dataset_module.open_video = noted(dataset_module.open_video, lambda args: args[0])


def walk(data: LazySupervisedDataset, rank: int, world: int, workers: int, epochs: int) -> list[list[int]]:
    """The steps of one rank, each with the numbers of its tokens: hashes of rows in order."""
    os.environ["RANK"] = str(rank)
    order = shuffled(len(data), data.fingerprint, 7)
    share = Share(per_device=STEP_ROWS // world, rank=rank, world=world)
    sampler = StepSampler(SampleStream(order, len(data)), share)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=list)
    steps = []
    for _ in range(epochs):
        for batch in loader:
            steps.append([hash(tuple(one["input_ids"])) for one in batch])
    return steps


def _rank(data, rank, world, workers, epochs, log, out) -> None:
    torch.set_num_threads(1)
    obey_permissions()
    count_decoding(log)
    try:
        told = {"steps": walk(data, rank, world, workers, epochs)}
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    Path(out).write_text(json.dumps(told))


def run(data, folder: Path, world: int = 2, workers: int = 2, epochs: int = 2) -> tuple[list[dict], dict]:
    """What each rank tells, and how often each medium was looked at by the process that looked most."""
    folder.mkdir(parents=True, exist_ok=True)
    log, fork = folder / "decoded", multiprocessing.get_context("fork")
    log.write_text("")
    outs = [folder / f"rank{rank}.json" for rank in range(world)]
    ranks = [
        fork.Process(target=_rank, args=(data, rank, world, workers, epochs, log, out))
        for rank, out in enumerate(outs)
    ]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(120)
    most: dict[str, int] = {}
    for line, looks in Counter(log.read_text().splitlines()).items():
        name = line.partition(" ")[2]
        most[name] = max(looks, most.get(name, 0))
    return [json.loads(out.read_text()) for out in outs], most
