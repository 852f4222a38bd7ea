"""Weights out of the shards of a ZeRO-3 checkpoint, one parameter at a time.

A rank keeps its share of every trained parameter in float32, one behind the other, in `fp32_flat_groups` of
its optimizer states; the model states give names and shapes in this order. A parameter of n numbers is cut
into as many equal parts as there are ranks, the last padded. Frozen parameters lie in the model states, cut
alike. (Seen in DeepSpeed 0.19.8; `deepspeed.utils.zero_to_fp32` does the same with the whole model in
memory.)

The files are pickles. They are opened only if the checkpoint's manifest lists them as they are, and then by
torch's restricted unpickler, memory-mapped: what is not asked for is not read.
"""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from quicksviewer.model.made_weights import CODES, MadeTensor
from quicksviewer.utils.manifest import MANIFEST, check

LATEST = "latest"
"""DeepSpeed's file that names the folder of shards."""
SHARD = re.compile(r"(?:bf16_)?zero_pp_rank_(0|[1-9]\d*)_mp_rank_00_(model|optim)_states\.pt")


def has_shards(checkpoint: Path) -> bool:
    return (checkpoint / LATEST).is_file()


def shard_files(checkpoint: Path) -> dict[str, list[Path]]:
    """Model and optimizer states, in the order of their ranks. ValueError unless a manifest vouches for
    all, and for states that are of no rank: other programs would open them too."""
    listed, tag = check(checkpoint), (checkpoint / LATEST).read_text().strip()
    found: dict[str, dict[int, Path]] = {"model": {}, "optim": {}}
    for path in sorted((checkpoint / tag).glob("*_states.pt")):
        if path.relative_to(checkpoint).as_posix() not in listed:
            raise ValueError(f"{path} is not in the {MANIFEST} of its checkpoint; it is not opened")
        match = SHARD.fullmatch(path.name)
        if match is None or int(match[1]) in found[match[2]]:
            raise ValueError(f"{path} is none of ZeRO-3's shards, or one of a rank that has another")
        found[match[2]][int(match[1])] = path
    ranks = [list(range(len(files))) for files in found.values()]
    if not found["optim"] or any(sorted(files) != ranks[0] for files in found.values()):
        raise ValueError(
            f"{checkpoint / tag} has the ZeRO-3 model states of ranks {sorted(found['model'])} and the "
            f"optimizer states of {sorted(found['optim'])}; both must be 0, 1, ... to the last"
        )
    return {kind: [files[rank] for rank in sorted(files)] for kind, files in found.items()}


def read_shards(checkpoint: Path) -> dict[str, MadeTensor]:
    """Name as DeepSpeed has it -> tensor, trained ones in float32. ValueError for shards that do not fit."""
    files = shard_files(checkpoint)
    try:
        models = [opened(path) for path in files["model"]]
        optims = [opened(path)["optimizer_state_dict"] for path in files["optim"]]
        return _trained(checkpoint, files, models, optims) | _frozen(models, files["model"][0])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{checkpoint} has shards that are not ZeRO-3's: {error!r}") from error


def _trained(checkpoint: Path, files: dict, models: list[dict], optims: list[dict]) -> dict[str, MadeTensor]:
    if optims[0]["partition_count"] != len(optims):
        raise ValueError(
            f"{checkpoint}: shards of {len(optims)} ranks, {optims[0]['partition_count']} wrote them"
        )
    shapes = {name: tuple(shape) for group in models[0]["param_shapes"] for name, shape in group.items()}
    parts = [math.ceil(math.prod(shape) / len(optims)) for shape in shapes.values()]
    flats = [optim["fp32_flat_groups"] for optim in optims]
    if wrong := {held for groups in flats if (held := sum(map(len, groups))) != sum(parts)}:
        raise ValueError(f"{checkpoint}: {sum(parts)} numbers of a rank announced, {min(wrong)} found")
    found = {}
    for (name, shape), start, size in zip(shapes.items(), accumulate([0, *parts]), parts, strict=False):
        shares = [_Share(groups, start, size) for groups in flats]
        found[name] = MadeTensor(
            files["optim"][0], "F32", shape, lambda shares=shares, shape=shape: _joined(shares, shape)
        )
    return found


class _Share:
    """Numbers [start, start + size) of groups that follow each other; a parameter may lie in several."""

    def __init__(self, groups: Sequence[Tensor], start: int, size: int):
        self.groups, self.start, self.stop = groups, start, start + size

    def pieces(self) -> Iterator[Tensor]:
        place = 0
        for group in self.groups:
            first, last = max(self.start - place, 0), min(self.stop - place, len(group))
            if first < last:
                yield group[first:last]
            place += len(group)


def _joined(shares: Sequence[_Share], shape: tuple[int, ...]) -> Tensor:
    whole = torch.cat([piece for share in shares for piece in share.pieces()])
    return whole[: math.prod(shape)].view(shape)


def _frozen(models: list[dict], file: Path) -> dict[str, MadeTensor]:
    shapes = models[0].get("frozen_param_shapes") or {}
    found = {}
    for name, shape in shapes.items():
        shares = [_Share([model["frozen_param_fragments"][name].flatten()], 0, 2**62) for model in models]
        code = CODES[models[0]["frozen_param_fragments"][name].dtype]
        shape = tuple(shape)
        found[name] = MadeTensor(file, code, shape, lambda shares=shares, shape=shape: _joined(shares, shape))
    return found


def opened(path: Path) -> dict:
    """What a shard holds, memory-mapped. Nothing in it runs: ValueError for what is no plain data."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    try:
        with torch.serialization.safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler]):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are not what they should be
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
