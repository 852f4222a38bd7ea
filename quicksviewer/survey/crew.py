"""Pieces of work in processes, each written to a file of its own: what is there already is not done again.

A process that dies does not take the run with it: pieces that were under way then are done `carefully`.
"""

import multiprocessing
import os
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

AHEAD = 3
"""Pieces for each process that are handed out at once."""

Work = Callable[[Any], bytes]


def in_pieces(
    folder: Path, pieces: Sequence[tuple[str, Any]], work: Work, carefully: Work, workers: int
) -> Iterator[str]:
    """Do the pieces (name, what) whose file is not in the folder; yields the name of each that is done.

    `work` and `carefully` give the file's bytes. `work` is a function of a module, as processes receive it;
    `carefully` runs here. 0 workers: `work` does, too.
    """
    todo = [(name, what) for name, what in pieces if not (folder / name).exists()]
    waiting = {name for name, _ in todo}
    yield from (name for name, _ in pieces if name not in waiting)
    suspects = (yield from _in_pool(folder, todo, work, workers)) if workers else []
    for name, what in suspects if workers else todo:
        _write(folder / name, (carefully if workers else work)(what))
        yield name


def _in_pool(folder: Path, todo: list, work: Work, workers: int) -> Generator[str, None, list]:
    """Do pieces in processes; returns those that were under way when a process died."""
    waiting, under_way, suspects = list(reversed(todo)), {}, []
    while waiting:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        try:
            while waiting or under_way:
                while waiting and len(under_way) < AHEAD * workers:
                    under_way[pool.submit(work, waiting[-1][1])] = waiting[-1]
                    waiting.pop()
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    _write(folder / under_way[future][0], future.result())
                    yield under_way.pop(future)[0]
        except BrokenProcessPool:
            suspects += under_way.values()
            under_way = {}
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return suspects


def _write(path: Path, letters: bytes) -> None:
    """All of it, or nothing under this name."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    aside.write_bytes(letters)
    os.replace(aside, path)


def alone(function: Callable, *args: Any) -> Any:
    """What a function of a module gives in a process of its own. BrokenProcessPool where that dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
