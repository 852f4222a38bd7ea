"""Tensors that are computed when they are written, for tools whose weights may be larger than the memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quicksviewer.model.consolidate import FLOATS
from quicksviewer.model.raw_weights import PIECE, WIDTHS, RawTensor

CODES = {dtype: code for code, dtype in FLOATS.items()}
"""dtype in torch -> in a safetensors header, of floats."""


@dataclass(frozen=True)
class MadeTensor:
    """To a writer the same as a RawTensor; `file`: what it is made from; `make()` gives it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    def __len__(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.dtype]

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, some at a time; meanwhile it is in memory, and no other tensor."""
        made = self.make()
        if tuple(made.shape) != self.shape or CODES.get(made.dtype) != self.dtype:
            raise ValueError(
                f"{self.file}: {made.dtype} {tuple(made.shape)}, expected {self.dtype} {self.shape}"
            )
        raw = made.contiguous().flatten().view(torch.uint8)
        for start in range(0, len(raw), PIECE):
            yield raw[start : start + PIECE].numpy().tobytes()


def load(tensor: RawTensor | MadeTensor) -> Tensor:
    """A tensor of floats, in memory. ValueError for one that has no floats."""
    if isinstance(tensor, MadeTensor):
        return tensor.make()
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{tensor.file}: expected numbers of {', '.join(FLOATS)}, got {tensor.dtype}")
    raw = bytearray().join(tensor.pieces())
    values = torch.frombuffer(raw, dtype=FLOATS[tensor.dtype]) if raw else torch.empty(0)
    return values.to(FLOATS[tensor.dtype]).view(tensor.shape)
