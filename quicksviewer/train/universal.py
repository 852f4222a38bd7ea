"""DeepSpeed's optimizer shards for another number of ranks than wrote them, through its universal format.

DeepSpeed's converter unpickles the shards, so it is given only checkpoints that passed their manifest.
"""

import shutil
from argparse import Namespace
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)
FOLDER = "universal"


def shard_folder(checkpoint: Path) -> Path | None:
    """The folder of ZeRO shards of a checkpoint, or None when DeepSpeed did not write it."""
    latest = checkpoint / "latest"
    return checkpoint / latest.read_text().strip() if latest.is_file() else None


def ranks_of(shards: Path) -> int:
    """How many ranks wrote the optimizer's shards."""
    return len(list(shards.glob("*_optim_states.pt")))


def convert(checkpoint: Path, workspace: Path) -> Path:
    """A folder in `workspace` that reads like the checkpoint and fits any number of ranks."""
    from deepspeed.checkpoint.ds_to_universal import main

    shards, out = shard_folder(checkpoint), workspace / FOLDER
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name != "latest":
            (out / path.name).symlink_to(path.resolve())
    tag = f"{shards.name}_universal"
    options = dict(num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False, strict=True)
    folders = dict(input_folder=str(shards), output_folder=str(out / tag))
    with redirect_stdout(StringIO()) as said:
        main(Namespace(**folders, **options, inject_missing_state=True))
    logger.debug(said.getvalue())
    for name in ("latest", "latest_universal"):
        (out / name).write_text(tag)
    return out


def repair_optimizer(zero_optimizer, groups: list[dict], rates: list[float]) -> None:
    """Put right what loading a converted checkpoint gets wrong under ZeRO-3 (seen in DeepSpeed 0.19.8).

    Every parameter group has the settings of the first one; and all parameters share one tensor that counts
    their steps, which Adam then raises once for each of them.
    """
    for group, settings, rate in zip(zero_optimizer.param_groups, groups, rates, strict=True):
        group.update({**settings, "lr": rate})
    for state in zero_optimizer.optimizer.state.values():
        if isinstance(step := state.get("step"), torch.Tensor):
            state["step"] = step.clone()
