"""Write a checkpoint again in another dtype and in shards of another size, without loading it.

python -m quicksviewer.model.consolidate --src FOLDER --dst FOLDER [--dtype bf16] [--max-shard-size 5]
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from quicksviewer.model.delta_command import progress_of
from quicksviewer.model.folder_aside import folder_aside, seal_weights
from quicksviewer.model.raw_weights import (
    INDEX,
    SINGLE,
    WIDTHS,
    RawTensor,
    copy_others,
    head_of,
    read_folder,
)

DTYPES = {"fp16": ("F16", torch.float16), "bf16": ("BF16", torch.bfloat16), "fp32": ("F32", torch.float32)}
"""Name -> dtype in a safetensors header and in torch."""
FLOATS = dict(DTYPES.values()) | {"F64": torch.float64}
GB = 10**9


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="consolidate", description=__doc__.splitlines()[0])
    parser.add_argument("--src", type=Path, required=True, help="checkpoint folder, read")
    parser.add_argument("--dst", type=Path, required=True, help="checkpoint folder, written")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="of all tensors of floats")
    parser.add_argument("--max-shard-size", type=float, default=5.0, help="of a file, in GB")
    args = parser.parse_args(argv)
    try:
        with progress_of(f"{args.src} as {args.dtype}") as report:
            consolidate(args.src, args.dst, args.dtype, args.max_shard_size, report)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.dst}: {args.src} as {args.dtype}")
    return 0


def consolidate(src: Path, dst: Path, dtype: str, max_shard_gb: float = 5.0, report=lambda _: None) -> None:
    """Write `dst`. ValueError for weights that cannot be read, numbers that `dtype` cannot hold, a folder
    that exists; then, and after a kill, nothing lies under the final name."""
    tensors = read_folder(src)
    with folder_aside(dst) as aside:
        copy_others(src, aside)
        (aside / INDEX).unlink(missing_ok=True)
        names = write_weights(aside, tensors, dtype, max_shard_gb, report)
        _write_dtype(aside / "config.json", dtype)
        seal_weights(aside, dst, names)


def write_weights(
    folder: Path, tensors: dict, dtype: str | None, max_shard_gb: float = 5.0, report=lambda _: None
) -> list[str]:
    """Write tensors (RawTensor or MadeTensor) as the weights of a folder: one file, or shards and their
    index.

    `dtype` None: each in its own. Returns the names of the files. ValueError as of `consolidate`."""
    if not max_shard_gb > 0:
        raise ValueError(f"a shard needs a size above 0 GB, got {max_shard_gb}")
    shards = list(_shards(tensors, dtype, max_shard_gb * GB))
    names = [_shard_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, dtype, report)
    if len(shards) > 1:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(_size(tensor, dtype) for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return names


def _shard_name(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _shards(tensors: dict[str, RawTensor], dtype: str, limit: float) -> Iterator[dict[str, RawTensor]]:
    """Tensors in their order, as many to a shard as fit; one that is larger has a shard of its own."""
    shard, size = {}, 0
    for name, tensor in tensors.items():
        if shard and size + _size(tensor, dtype) > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += _size(tensor, dtype)
    yield shard


def _code(tensor: RawTensor, dtype: str | None) -> str:
    return DTYPES[dtype][0] if dtype and tensor.dtype in FLOATS else tensor.dtype


def _size(tensor: RawTensor, dtype: str) -> int:
    return len(tensor) // WIDTHS[tensor.dtype] * WIDTHS[_code(tensor, dtype)]


def write_file(path: Path, tensors: dict, dtype: str | None = None, report=lambda _: None) -> None:
    """Write tensors (RawTensor or MadeTensor) as one safetensors file, a piece at a time."""
    rows = {name: (_code(t, dtype), t.shape, _size(t, dtype)) for name, t in tensors.items()}
    with path.open("wb") as file:
        file.write(head_of(rows, {"format": "pt"}))
        for name, tensor in tensors.items():
            for piece in _cast(name, tensor, _code(tensor, dtype)):
                file.write(piece)
                report(len(piece))


def _cast(name: str, tensor: RawTensor, code: str) -> Iterable[bytes]:
    if code == tensor.dtype:
        yield from tensor.pieces()
        return
    for piece in tensor.pieces():
        numbers = torch.frombuffer(bytearray(piece), dtype=FLOATS[tensor.dtype])
        cast = numbers.to(FLOATS[code])
        if (cast.isinf() & numbers.isfinite()).any():
            raise ValueError(f"{tensor.file}: {name} has numbers too large for {code}; bf16 can hold them")
        yield cast.view(torch.uint8).numpy().tobytes()


def _write_dtype(path: Path, dtype: str) -> None:
    """Let the config say what the weights are."""
    if path.is_file():
        config = json.loads(path.read_text())
        config["dtype"] = str(DTYPES[dtype][1]).removeprefix("torch.")
        config.pop("torch_dtype", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
