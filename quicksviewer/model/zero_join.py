"""The shards of ZeRO-3 as DeepSpeed joins them, to compare with what our own reader makes of them.

DeepSpeed unpickles without restriction, and every file that its patterns find. Here it opens none itself: its
module is given a `torch` whose `load` is ours, which knows the shards of the checkpoint and no other file.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from quicksviewer.model.made_weights import CODES, MadeTensor
from quicksviewer.model.zero_shards import opened, shard_files

_one_at_a_time = threading.Lock()


class _Torch:
    """torch, but for `load`."""

    def __init__(self, files: set[Path]):
        self.files = files

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def load(self, path: str | Path, **_settings) -> dict:
        if Path(path) not in self.files:
            raise ValueError(f"{path} is none of the shards; it is not opened")
        return opened(Path(path))


@contextmanager
def _restricted(module, files: set[Path]) -> Iterator[None]:
    with _one_at_a_time:
        module.torch = _Torch(files)
        try:
            yield
        finally:
            module.torch = torch


def joined_by_deepspeed(checkpoint: Path) -> dict[str, MadeTensor]:
    """Name -> tensor; trained ones are joined when they are written, one at a time."""
    from deepspeed.utils import zero_to_fp32

    files = {path for paths in shard_files(checkpoint).values() for path in paths}
    with _restricted(zero_to_fp32, files), redirect_stdout(StringIO()):
        lazy = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), lazy_mode=True)
    return {
        name: MadeTensor(checkpoint, CODES[tensor.dtype], tuple(tensor.shape), tensor.contiguous)
        for name, tensor in lazy.items()
    }
