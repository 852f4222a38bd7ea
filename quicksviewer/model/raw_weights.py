"""Weights of a checkpoint folder as bytes on the disk: what lies where in its safetensors files.

For tools that go through checkpoints larger than the memory: nothing is loaded, a tensor is read in pieces.
The format (https://huggingface.co/docs/safetensors): the length of a JSON header as 8 bytes, little endian,
the header (name -> dtype, shape, data_offsets), the data. Files are not trusted: lengths, offsets and shapes
are compared before a byte is read.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quicksviewer.utils.manifest import MANIFEST

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""The library's own bound, in bytes."""
PIECE = 1 << 23
"""Bytes that are read at a time."""
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Endings of files that are not taken along: they would have to be unpickled to be read."""
WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Name of a dtype in a header -> bytes of an element."""


@dataclass(frozen=True)
class RawTensor:
    """A tensor in a file: its bytes are [start, stop) of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis; of the whole tensor if it has no axes."""
        return math.prod(self.shape[1:]) * WIDTHS[self.dtype]

    def pieces(self, start: int = 0, stop: int | None = None, step: int = PIECE) -> Iterator[bytes]:
        """Its bytes [start, stop), `step` at a time."""
        left = (len(self) if stop is None else stop) - start
        with self.file.open("rb") as file:
            file.seek(self.start + start)
            while left:
                piece = file.read(min(left, step))
                if len(piece) < min(left, step):
                    raise ValueError(f"{self.file} became shorter while it was read")
                left -= len(piece)
                yield piece


@dataclass(frozen=True)
class RawFile:
    """A safetensors file: the bytes in front of its data, and its tensors in the order of their bytes."""

    path: Path
    head: bytes
    tensors: dict[str, RawTensor]


def read_file(path: Path) -> RawFile:
    """What a safetensors file says about itself. ValueError, with the file, where that cannot be true."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            length, size = int.from_bytes(head, "little"), os.fstat(file.fileno()).st_size
            if len(head) < 8 or length > min(MAX_HEADER, size - 8):
                raise ValueError(f"{path} is not a safetensors file: its header is longer than the file")
            head += file.read(length)
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    tensors = tensors_of(path, head)
    end = max((tensor.stop for tensor in tensors.values()), default=len(head))
    if end != size:
        raise ValueError(f"{path} is damaged: its tensors end at byte {end}, the file at {size}")
    return RawFile(path, head, tensors)


def tensors_of(path: Path, head: bytes) -> dict[str, RawTensor]:
    """The tensors that the head of a file (length and header) announces, in the order of their bytes."""
    try:
        rows = json.loads(head[8:])
        rows.pop("__metadata__", None)
        tensors = {name: _tensor(path, len(head), name, row) for name, row in rows.items()}
        ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
        place = len(head)
        for name, tensor in ordered.items():
            if tensor.start != place:
                raise ValueError(
                    f"{name} starts at byte {tensor.start}, not at {place} behind the one before"
                )
            place = tensor.stop
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header: {error}") from error
    return ordered


def _tensor(path: Path, offset: int, name: str, row: dict) -> RawTensor:
    start, stop = (int(at) for at in row["data_offsets"])
    dtype, shape = row["dtype"], tuple(int(size) for size in row["shape"])
    if dtype not in WIDTHS:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if min(shape, default=1) < 0 or stop - start != math.prod(shape) * WIDTHS[dtype] or start < 0:
        raise ValueError(f"{name}: {stop - start} bytes do not hold {list(shape)} of {dtype}")
    return RawTensor(path, dtype, shape, offset + start, offset + stop)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in order. ValueError where there are none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}; other formats of weights are not read")
    try:
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        if wrong := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{wrong[0]!r} is not a file beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged: {error}") from error
    return [folder / name for name in sorted(names)]


def read_folder(folder: Path) -> dict[str, RawTensor]:
    """All tensors of a checkpoint folder by name. ValueError for what is not readable or there twice."""
    found: dict[str, RawTensor] = {}
    for path in weight_files(folder):
        tensors = read_file(path).tensors
        if twice := found.keys() & tensors.keys():
            raise ValueError(f"{sorted(twice)[0]} is in {path} and in {found[min(twice)].file}")
        found |= tensors
    return found


def head_of(
    rows: dict[str, tuple[str, tuple[int, ...], int]], metadata: dict[str, str] | None = None
) -> bytes:
    """Header of a file of tensors, name -> (dtype, shape, bytes), in this order, with its length in front."""
    header, place = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape, size) in rows.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    return len(text).to_bytes(8, "little") + text


def is_other(name: str) -> bool:
    """Whether a file of a checkpoint is neither weights, nor would have to be unpickled, nor its manifest."""
    return name != MANIFEST and Path(name).suffix.lower() not in (".safetensors", *PICKLED)


def copy_others(folder: Path, to: Path, is_taken: Callable[[str], bool] = is_other) -> None:
    """Everything of a checkpoint that is not weights: config, tokenizer, processor, index."""
    to.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_taken(path.name):
            shutil.copyfile(path, to / path.name)
