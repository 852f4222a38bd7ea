"""A process that turns one pickled weight file into safetensors, and can do little else.

    python -P -m quicksviewer.model.unpickle_child IN OUT        descriptors, both opened by import_pickles.py

It uses torch's restricted unpickler, and before it looks at the file it gives up the network, other programs
and processes, and all but a bounded amount of memory, time and output. Prints what was wrong; exit code 0 or
1.
"""

import os
import resource
import sys
from collections.abc import Iterator

import torch

from quicksviewer.model.made_weights import CODES
from quicksviewer.model.raw_weights import PIECE, head_of
from quicksviewer.utils.decode_child import limit_call
from quicksviewer.utils.syscalls import forbid_syscalls

SECONDS, MEMORY, SLACK = 3600, 2**30, 2**26
"""Beyond the size of the file: memory for its tensors while they are read, and room for names."""
CODES_OF_ALL = CODES | {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


def main(source: int, target: int) -> int:
    try:
        size = os.fstat(source).st_size
        give_up(size)
        write(read(source), target, 2 * size + SLACK)
    except Exception as error:  # whatever a file can provoke is said, not raised
        print(str(error).splitlines()[0][:500] or type(error).__name__)
        return 1
    return 0


def give_up(size: int) -> None:
    """Bounds on everything, for good. A file may be read into memory once, and again as its tensors."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + SLACK,) * 2)
    forbid_syscalls()
    limit_call(SECONDS, 2 * size + MEMORY)


def read(source: int) -> dict[str, torch.Tensor]:
    """The tensors of a file by name. ValueError where it holds anything else."""
    path = f"/proc/self/fd/{source}"
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError as error:
        if "mmap" not in str(error):  # files older than torch 1.6 cannot be mapped
            raise
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise ValueError(f"expected a mapping from names to tensors, got a {type(found).__name__}")
    for name, tensor in found.items():
        if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(f"{str(name)[:80]!r} is a {type(tensor).__name__}, expected a tensor")
        if tensor.dtype not in CODES_OF_ALL or tensor.layout != torch.strided:
            raise ValueError(f"{name} has the dtype {tensor.dtype} and the layout {tensor.layout}")
    return {name: tensor.detach() for name, tensor in found.items()}


def write(tensors: dict[str, torch.Tensor], target: int, limit: int) -> None:
    """Write them as a safetensors file, some bytes at a time. A view may repeat numbers, so the sum is
    bounded."""
    rows = {
        name: (CODES_OF_ALL[t.dtype], tuple(t.shape), t.numel() * t.element_size())
        for name, t in tensors.items()
    }
    if sum(size for *_, size in rows.values()) > limit:
        raise ValueError("its tensors are larger than the file: it repeats numbers")
    with os.fdopen(target, "wb") as file:
        file.write(head_of(rows, {"format": "pt"}))
        for tensor in tensors.values():
            for piece in _pieces(tensor):
                file.write(piece)


def _pieces(tensor: torch.Tensor) -> Iterator[bytes]:
    raw = tensor.contiguous().flatten().view(torch.uint8)
    for start in range(0, len(raw), PIECE):
        yield raw[start : start + PIECE].numpy().tobytes()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
