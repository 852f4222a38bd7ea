"""Where tasks run: a pool of processes on this machine, or Ray Data. The tasks are the same.

A task is called without arguments and gives a mapping that JSON knows. Results come as they are ready, with
the place of their task in the list.
"""

import json
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from quicksviewer.utils.registry import lookup, require

Task = Callable[[], dict]
Results = Iterator[tuple[int, dict]]
OBJECT_STORE_BYTES = 200 * 2**20
"""Of a Ray that is started here; results are small."""


LIGHT = ["-m"]
"""What a process of ours has as its command line."""


class WorkerDied(RuntimeError):
    """A process ended in the middle of a task."""


def run_local(tasks: Sequence[Task], workers: int) -> Results:
    """In `workers` processes; one of them is this process itself."""
    if workers <= 1 or len(tasks) <= 1:
        yield from ((place, task()) for place, task in enumerate(tasks))
        return
    # Processes forked from a clean server: threads of file systems and of Arrow do not survive a plain fork.
    context = multiprocessing.get_context("forkserver")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_ignore_interrupts)
    try:
        with _light_imports():
            futures = {pool.submit(task): place for place, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise WorkerDied(
            "a worker process died: killed, out of memory, or crashed. Finished shards are kept, the same "
            "command goes on; fewer --num_workers need less memory"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()


@contextmanager
def _light_imports():
    """Processes that are started inside take us for the command line, as `quicksviewer/__init__.py` tells it,
    and load no model classes: a start takes a fraction of a second instead of many."""
    before, sys.argv = sys.argv, LIGHT
    try:
        yield
    finally:
        sys.argv = before


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the one that waits for the others ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_ray(tasks: Sequence[Task], workers: int) -> Results:
    """By Ray Data: on the cluster of RAY_ADDRESS, or on a Ray of this machine that ends with the call."""
    ray = require("ray", "ray")
    data = require("ray.data", "ray")
    with _ray_running(ray, workers):
        data.DataContext.get_current().enable_progress_bars = False
        numbered = [{"place": place} for place in range(len(tasks))]
        todo = data.from_items(numbered, override_num_blocks=max(1, len(numbered)))
        for row in todo.map(_caller(tasks)).iter_rows():
            yield row["place"], json.loads(row["result"])


def _caller(tasks: Sequence[Task]) -> Callable[[dict], dict]:
    """Turns a row of Ray Data into the result of its task, as text: Ray need not guess its columns.

    The function travels by value and opens the tasks itself: it runs before our package is imported.
    """
    packed, light = pickle.dumps(tuple(tasks)), LIGHT

    def call(row: dict) -> dict:
        sys.argv = light
        return {"place": row["place"], "result": json.dumps(pickle.loads(packed)[row["place"]]())}

    return call


@contextmanager
def _ray_running(ray, workers: int):
    if ray.is_initialized():
        yield
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="warning")
    else:
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level="warning",
            log_to_driver=False,
        )
    try:
        yield
    finally:
        ray.shutdown()


RUNNERS: dict[str, Callable[[Sequence[Task], int], Results]] = {"local": run_local, "ray": run_ray}
"""Name of `--runner` -> function (tasks, workers)."""


def run(tasks: Sequence[Task], runner: str, workers: int) -> Results:
    """(place, result) of every task, in the order in which they end."""
    return lookup(RUNNERS, runner, "runner")(tasks, workers)
