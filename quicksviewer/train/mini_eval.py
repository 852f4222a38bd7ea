"""A benchmark in small, every so many steps of a run: the model in training, the loop of `quicksviewer eval`.

It changes nothing of the training: no random number is drawn, no statistic counted. Processes share the
batches; under ZeRO-3, where every process must call every module, all of them compute all.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from quicksviewer.eval.answering import Answerer, make_batches
from quicksviewer.eval.summary import summarise
from quicksviewer.eval.task import Benchmark, Item, spread
from quicksviewer.eval.tasks import task_named
from quicksviewer.model.documents import BY_DOCUMENT
from quicksviewer.utils.dist import rank, world_size

BATCH_SIZE = 8
"""As in `quicksviewer eval`, so that both answer alike."""
FLAGS = ("eval_every_steps", "eval_limit", "eval_data")


@dataclass(frozen=True)
class MiniTask:
    """What is asked on the way: some items of a task."""

    name: str
    task: Benchmark
    items: list[Item]
    every: int


def read_mini_task(training) -> MiniTask | None:
    """What the flags --eval_task, --eval_every_steps, --eval_limit and --eval_data ask for; None for nothing.

    Raises ValueError or SampleError where they contradict each other or the files of the task are missing.
    """
    name, every = training.eval_task, training.eval_every_steps
    if name is None:
        if given := [f"--{flag}" for flag in FLAGS if getattr(training, flag) is not None]:
            raise ValueError(f"{', '.join(given)} need --eval_task")
        return None
    if every is None or every < 1 or (training.eval_limit or 1) < 1:
        raise ValueError(
            f"--eval_task needs --eval_every_steps and --eval_limit of at least 1, got {every} and "
            f"{training.eval_limit}"
        )
    task = task_named(name)
    if task.judges:
        raise ValueError(f"--eval_task {name} needs a judge; on the way only tasks without one are asked")
    data = training.eval_data or task.data
    if data is None:
        raise ValueError(f"--eval_data must name the folder of {name}")
    return MiniTask(
        name, task, spread(list(task.samples(Path(data), None)), training.eval_limit or 32), every
    )


class MiniEvaluation(TrainerCallback):
    """Asks a few items every so many steps and logs what came of it: eval_TASK_METRIC, by kind too."""

    def __init__(self, trainer, loaded, mini: MiniTask):
        self.trainer, self.loaded, self.mini = trainer, loaded, mini

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.mini.every == 0:
            is_due = control.should_log  # which `log` takes for done
            self.trainer.log(self.measure())
            control.should_log = is_due

    def measure(self) -> dict[str, float]:
        """What is logged; every process must call it."""
        began, mini = time.perf_counter(), self.mini
        is_spread = any(hasattr(parameter, "ds_id") for parameter in self.loaded.model.parameters())
        batches = make_batches(mini.items, BATCH_SIZE)
        share = batches if is_spread else batches[rank() :: world_size()]
        answerer = Answerer(loaded=self.loaded, task=mini.task, prompt=mini.task.prompt, synced=is_spread)
        with asking(self.loaded.model), self.trainer.compute_loss_context_manager():
            records = [record for found, _ in answerer.answer(share) for record in found]
        records = records if is_spread else gathered(records)
        return entries(mini, records) | {f"eval_{mini.name}_seconds": round(time.perf_counter() - began, 3)}


@contextmanager
def asking(model):
    """The model as it is used, and afterwards again as it is trained. Random numbers are where they were."""
    modes = [(module, module.training) for module in model.modules()]
    attention = model.config._attn_implementation
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            model.eval()
            if attention == BY_DOCUMENT:  # which cannot go on from a cache
                model.config._attn_implementation = "sdpa"
            yield
    finally:
        model.config._attn_implementation = attention
        for module, mode in modes:
            module.training = mode


def gathered(records: list[dict]) -> list[dict]:
    """The records of all processes, in an order that does not depend on how they were shared."""
    if not dist.is_initialized() or world_size() == 1:
        return records
    parts = [None] * world_size()
    dist.all_gather_object(parts, records)
    return sorted((record for part in parts for record in part), key=lambda record: record["uid"])


def entries(mini: MiniTask, records: list[dict]) -> dict[str, float]:
    """Log entries: the headline of all and of every kind, the other metrics, what was lost."""
    summary = summarise(records, mini.task.metrics)
    head, metric = f"eval_{mini.name}", summary["metric"]
    whole = summary["by_kind"].pop("overall")
    logs = {f"{head}_{metric}": whole[metric], f"{head}_items": whole["items"]}
    logs |= {f"{head}_{name}": whole[name] for name in ("unanswered", "failed")}
    logs |= {f"{head}_{name}": span["mean"] for name, span in whole.get("others", {}).items()}
    return logs | {f"{head}_{metric}/{kind}": row[metric] for kind, row in summary["by_kind"].items()}
