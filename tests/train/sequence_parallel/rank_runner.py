"""Run cases on several gloo processes: they are started once for a whole list of cases."""

import datetime
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Case = tuple[Callable, dict]


def on_ranks(world: int, cases: dict[str, Case], folder: Path) -> dict[str, list]:
    """What every rank returned, by the name of the case. The first failure of a rank is raised here."""
    mp.spawn(_rank, args=(world, cases, str(folder)), nprocs=world)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
    if failures := [result["failed"] for result in found if "failed" in result]:
        raise AssertionError("\n".join(failures))
    return {name: [result[name] for result in found] for name in cases}


def _rank(rank: int, world: int, cases: dict[str, Case], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {}
    try:
        for name, (function, arguments) in cases.items():
            torch.manual_seed(0)
            results[name] = function(**arguments)
    except Exception:  # shown by the parent
        results["failed"] = f"rank {rank}, case {name}:\n{traceback.format_exc()}"
    torch.save(results, Path(folder) / f"{rank}.pt")
    if "failed" not in results:
        dist.barrier()
    dist.destroy_process_group()
