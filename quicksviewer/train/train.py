"""Train one stage: arguments -> model, data, trainer -> train -> save.

    python -m torch.distributed.run --standalone --nproc_per_node 2 \\
        -m quicksviewer.train.train --recipe tiny --stage stage1 --deepspeed zero2.json

One process needs no launcher: python -m quicksviewer train --recipe tiny --stage stage1
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from quicksviewer.train.args import Run, as_run, read_settings
from quicksviewer.train.callbacks import StopOnSignal
from quicksviewer.train.checkpoint import ResumeError, newest_checkpoint, safe_save_model_for_hf_trainer
from quicksviewer.train.systems import System, system_named
from quicksviewer.utils.data_util import MediaError
from quicksviewer.utils.dist import barrier, close_process_group, is_main, on_main, seed_everything
from quicksviewer.utils.manifest import check
from quicksviewer.utils.modules import parts_report
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)
INTERRUPTED = 130
"""Exit code of a run that was asked to stop (SIGINT, SIGTERM) and saved its state first."""


def main(argv: list[str] | None = None, form_team: Callable[[Run, Any], None] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage or missing files, 130 stopped after a checkpoint.

    `form_team` is given the run and its model, before anything is trained (see train_hybrid.py).
    """
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv)
        if settings.values.deepspeed:
            be_the_only_process()
        start_process_group(settings.values.use_cpu)
        run = as_run(settings)
        system = system_named(run.system)
        check_team(run, system, form_team)
        check_run(run, system)
        seed_everything(run.training.seed)
        loaded = system.build_model(run)
        if form_team is not None:
            form_team(run, loaded.model)
        system.check_model(run, loaded.model)
        trainer = system.build_trainer(run, loaded)
    except (ValueError, MediaError) as error:
        return _refused(error)
    try:
        return train(run, trainer)
    except ResumeError as error:
        return _refused(error)
    finally:
        close_process_group()


def _refused(error: Exception) -> int:
    if is_main():
        print(f"error: {error}", file=sys.stderr)
    close_process_group()
    return 2


def check_team(run: Run, system: System, form_team) -> None:
    """ValueError when the run asks for sequence parallelism, which this entry does not turn on, or when this
    entry turns it on for a model that does not know it."""
    if form_team is not None:
        if not system.forms_teams:
            raise ValueError(
                f"{run.system} cannot share rows among processes: use -m quicksviewer.train.train"
            )
        return
    asked = {name: size for name, size in run.training.sequence_parallel().items() if (size or 1) > 1}
    if asked:
        raise ValueError(f"sequence parallelism {asked} needs the entry -m quicksviewer.train.train_hybrid")


FIXED = {"average_tokens_across_devices": True, "auto_find_batch_size": False, "dataloader_drop_last": False}
FIXED_BECAUSE = {
    "average_tokens_across_devices": "the loss is divided by the tokens of the whole step",
    "auto_find_batch_size": "the order of samples counts whole steps, so their size is given and stays",
    "dataloader_drop_last": "epochs follow each other without a gap; there is no last batch to drop",
}
"""Arguments of transformers that have one value here, and why."""


def check_run(run: Run, system: System) -> None:
    """ValueError for settings that contradict each other, before anything is loaded."""
    for name, only in FIXED.items():
        if getattr(run.training, name) != only:
            raise ValueError(f"--{name} must be {only}: {FIXED_BECAUSE[name]}")
    system.check_run(run)


def be_the_only_process() -> None:
    """Without a launcher DeepSpeed would look for MPI: say that this process is a group of one."""
    if "LOCAL_RANK" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def start_process_group(use_cpu: bool) -> None:
    """torch.distributed as the launcher describes it, with a store of its own for every restart.

    torchrun keeps one store over its restarts, in which a new process would find the address of a lost one.
    DeepSpeed is told as well: on CPU accelerate does not, and ZeRO-3 needs it.
    """
    on_gpu = torch.cuda.is_available() and not use_cpu
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if "LOCAL_RANK" not in os.environ or (on_gpu and restarts == "0"):
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start {restarts}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world)
    if on_gpu:
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops

    # The shared-memory op is compiled for 20 s at every first start and changes results between machines.
    if hasattr(deepspeed.ops, "__compatible_ops__"):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def train(run: Run, trainer) -> int:
    """Train and save. Whatever the run learned is in its output folder when this returns."""
    write_record(run, trainer)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.train(resume_from_checkpoint=resume_point(run))
    if stop.asked:
        logger.warning("stopped at step %d, after writing a checkpoint", trainer.state.global_step)
        return INTERRUPTED
    safe_save_model_for_hf_trainer(trainer, run.training.output_dir)
    barrier()
    return 0


def write_record(run: Run, trainer) -> None:
    """Before the first step: the resolved settings and what is trainable, on screen and in the output
    folder."""
    model = trainer.model.get_base_model() if run.model.lora_enable else trainer.model
    rows = parts_report(model, trainer.parts)
    trainer.resolved["data_sha256"] = trainer.fingerprint
    if not is_main():
        return
    folder = Path(run.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(trainer.resolved, indent=2, default=str) + "\n")
    report = [{"part": r.part, "parameters": r.parameters, "trainable": r.trainable} for r in rows]
    (folder / "trainable.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{run.stage} of recipe {run.recipe}: {len(trainer.train_dataset)} samples")
    for row in rows:
        print(f"  {row.part:15} {row.parameters:>14,} parameters  {row.trainable:>14,} trainable", flush=True)


def resume_point(run: Run) -> str | None:
    """`--resume_from_checkpoint`: a folder, or `last` for the newest complete one of the output folder.

    The first process looks, the others are told. ResumeError for a folder that is not complete.
    """
    asked = run.training.resume_from_checkpoint
    if asked is None:
        return None
    if asked in ("last", "True", "true"):
        found = on_main(lambda: newest_checkpoint(run.training.output_dir))
        if found is None and is_main():
            logger.warning("%s has no complete checkpoint; starting from step 0", run.training.output_dir)
        return found
    if fault := on_main(lambda: _fault(asked)):
        raise ResumeError(fault)
    return asked


def _fault(checkpoint: str) -> str | None:
    try:
        check(Path(checkpoint))
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
