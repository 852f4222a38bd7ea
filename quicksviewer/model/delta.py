"""The difference between two checkpoints, and a checkpoint from a base and a difference.

A delta folder holds, for each weight file of the target, a file of differences, beside them the other files
of the target (`files/`), `delta.json`, and the manifest that is written last. Per tensor of the target:

    same    equal to the base's, not stored
    diff    the base has one of this name, dtype and width of a row: the rows that both have are differences,
            further rows of the target are stored as they are (a vocabulary may have grown or shrunk)
    new     everything else, stored as it is

Forms of a difference: `xor` of the bits, which gives the target's files back byte for byte whatever the
dtype; `fp16` and `fp32`, target minus base, which round. Memory is that of a few pieces (raw_weights.PIECE),
not of a model. The base is known by the digests of its tensors, not of its files, which may be others.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from quicksviewer.model.raw_weights import (
    PIECE,
    WIDTHS,
    RawTensor,
    copy_others,
    folder_aside,
    head_of,
    read_file,
    read_folder,
    tensors_of,
    weight_files,
)
from quicksviewer.utils.config import build, load_mapping
from quicksviewer.utils.manifest import check, seal, sha256_of
from quicksviewer.utils.registry import lookup

RECORD, FILES, VERSION = "delta.json", "files", 1
PLAIN = "//rows"
"""Ending of the name under which rows are stored as they are; differences have the name of their tensor."""
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
Report = Callable[[int], None]
"""Is told of bytes that are done."""


@dataclass(frozen=True)
class FileRecord:
    """A weight file of the target. `head`: hex of the bytes in front of its data; `kinds`: tensor -> kind."""

    sha256: str
    head: str
    kinds: dict[str, str]


@dataclass(frozen=True)
class DeltaRecord:
    """What delta.json holds. `base`: tensor -> digest (see `digest_of`) of those that are needed."""

    version: int
    form: str
    base_name: str
    base: dict[str, str]
    files: dict[str, FileRecord]


def digest_of(tensor: RawTensor, report: Report) -> str:
    """SHA-256 (hex) of a tensor: dtype, shape, bytes."""
    digest = hashlib.sha256(json.dumps([tensor.dtype, tensor.shape]).encode())
    for piece in tensor.pieces():
        digest.update(piece)
        report(len(piece))
    return digest.hexdigest()


def _xor(a: bytes, b: bytes, dtype: str) -> bytes:
    return (np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).tobytes()


def _floats(raw: bytes, dtype: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=FLOATS[dtype]).to(torch.float32)


def _raw(values: torch.Tensor) -> bytes:
    return values.view(torch.uint8).numpy().tobytes()


def _minus(stored: str) -> Callable[[bytes, bytes, str], bytes]:
    return lambda target, base, dtype: _raw(
        (_floats(target, dtype) - _floats(base, dtype)).to(FLOATS[stored])
    )


def _plus(stored: str) -> Callable[[bytes, bytes, str], bytes]:
    return lambda diff, base, dtype: _raw((_floats(base, dtype) + _floats(diff, stored)).to(FLOATS[dtype]))


@dataclass(frozen=True)
class Form:
    """`diff(target, base, dtype)` and `join(diff, base, dtype)` of pieces with equally many elements;
    `stored`: dtype of differences, None for the tensor's own."""

    diff: Callable[[bytes, bytes, str], bytes]
    join: Callable[[bytes, bytes, str], bytes]
    stored: str | None = None


FORMS = {
    "xor": Form(_xor, _xor),
    "fp16": Form(_minus("F16"), _plus("F16"), "F16"),
    "fp32": Form(_minus("F32"), _plus("F32"), "F32"),
}


def make_delta(
    base: Path, target: Path, delta: Path, form: str = "xor", report: Report = lambda _: None
) -> DeltaRecord:
    """Write the folder from which, with `base`, `target` can be made again.

    ValueError for weights that cannot be read, an unknown form, a folder that exists. After an error or a
    kill nothing lies under the final name.
    """
    lookup(FORMS, form, "form of a delta")
    ground, aside = read_folder(base), folder_aside(delta)
    needed, files = {}, {}
    for path in weight_files(target):
        raw = read_file(path)
        kinds = {name: _kind(name, t, ground, form, needed, report) for name, t in raw.tensors.items()}
        stored = [
            entry
            for name, kind in kinds.items()
            if kind != "same"
            for entry in _stored(name, raw.tensors[name], ground.get(name) if kind == "diff" else None, form)
        ]
        _write(
            aside / path.name, head_of({key: row for key, row, _ in stored}), (p for *_, p in stored), report
        )
        files[path.name] = FileRecord(sha256_of(path), raw.head.hex(), kinds)
    copy_others(target, aside / FILES)
    record = DeltaRecord(VERSION, form, base.resolve().name, needed, files)
    (aside / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n")
    seal(aside, delta)
    return record


def _kind(name: str, tensor: RawTensor, ground: dict, form: str, needed: dict, report: Report) -> str:
    """What is stored of a tensor; notes the digest of the base's tensor if it is needed."""
    base = ground.get(name)
    if base is None or not _comparable(base, tensor, form):
        return "new"
    needed[name] = digest_of(base, report)
    return "same" if digest_of(tensor, report) == needed[name] else "diff"


def _comparable(base: RawTensor, target: RawTensor, form: str) -> bool:
    if (
        len(base.shape) != len(target.shape)
        or base.shape[1:] != target.shape[1:]
        or base.dtype != target.dtype
    ):
        return False
    return FORMS[form].stored is None or target.dtype in FLOATS


def _stored(name: str, target: RawTensor, base: RawTensor | None, form: str) -> Iterator[tuple]:
    """(key, (dtype, shape, bytes), pieces) of the differences and of the plain rows of a tensor."""
    shared = 0 if base is None else min(len(base), len(target))
    rows = shared // target.row_bytes if shared else 0
    if shared:
        dtype = FORMS[form].stored or target.dtype
        size = shared // WIDTHS[target.dtype] * WIDTHS[dtype]
        both = zip(target.pieces(0, shared), base.pieces(0, shared), strict=True)
        diff = FORMS[form].diff
        pieces = (diff(theirs, ours, target.dtype) for theirs, ours in both)
        yield name, (dtype, (rows, *target.shape[1:]), size), pieces
    if shared < len(target):
        shape = (target.shape[0] - rows, *target.shape[1:]) if rows else target.shape
        yield name + PLAIN, (target.dtype, shape, len(target) - shared), target.pieces(shared)


def apply_delta(base: Path, delta: Path, target: Path, report: Report = lambda _: None) -> DeltaRecord:
    """Write the target of a delta. Of form `xor` its files are those of the target, byte for byte.

    ValueError, before anything is written, for a delta that is damaged and for another base (its first tensor
    that differs is named); for a folder that exists.
    """
    record, ground = read_delta(delta), read_folder(base)
    check_base(record, ground, base, report)
    aside = folder_aside(target)
    for name, file in record.files.items():
        _check_file(
            name,
            file,
            _write(aside / name, *_joined(delta / name, file, ground, record.form), report),
            record,
        )
    shutil.copytree(delta / FILES, aside, dirs_exist_ok=True)
    seal(aside, target)
    return record


def verify_delta(base: Path, delta: Path, report: Report = lambda _: None) -> DeltaRecord:
    """Do all of `apply_delta` but write nothing. ValueError as there."""
    record, ground = read_delta(delta), read_folder(base)
    check_base(record, ground, base, report)
    for name, file in record.files.items():
        _check_file(
            name, file, _write(None, *_joined(delta / name, file, ground, record.form), report), record
        )
    return record


def read_delta(delta: Path) -> DeltaRecord:
    """The record of a delta folder whose files are as its manifest says. ValueError for any other."""
    check(delta)
    record = build(DeltaRecord, load_mapping(delta / RECORD), str(delta / RECORD))
    lookup(FORMS, record.form, f"form in {delta / RECORD}")
    if record.version != VERSION:
        raise ValueError(f"{delta / RECORD} has version {record.version}; this is for version {VERSION}")
    if wrong := [name for name in record.files if Path(name).name != name]:
        raise ValueError(f"{delta / RECORD} names {wrong[0]!r}, which is no file beside it")
    return record


def check_base(record: DeltaRecord, ground: dict[str, RawTensor], base: Path, report: Report) -> None:
    """ValueError for a base that is not the one of which the delta was made. Small tensors are looked at
    first."""
    for name in sorted(record.base, key=lambda name: len(ground[name]) if name in ground else -1):
        if name not in ground:
            raise ValueError(f"{base} is not the base {record.base_name!r}: it has no {name}")
        if (found := digest_of(ground[name], report)) != record.base[name]:
            raise ValueError(
                f"{base} is not the base {record.base_name!r} of this delta: {name} has the digest "
                f"{found[:16]}, expected {record.base[name][:16]}"
            )


def _joined(path: Path, file: FileRecord, ground: dict, form: str) -> tuple[bytes, Iterator[Iterator[bytes]]]:
    """The bytes in front of the data of a weight file of the target, and its tensors in pieces."""
    head, stored = bytes.fromhex(file.head), read_file(path).tensors
    wanted = tensors_of(path, head)
    if wanted.keys() != file.kinds.keys():
        raise ValueError(f"{path}: its record and its header name different tensors")
    return head, (
        _whole(name, tensor, _pieces(name, tensor, file.kinds[name], stored, ground, FORMS[form]))
        for name, tensor in wanted.items()
    )


def _pieces(
    name: str, wanted: RawTensor, kind: str, stored: dict, ground: dict, form: Form
) -> Iterator[bytes]:
    """The bytes of a tensor of the target, from what the base and the delta have under its name."""
    if kind == "same":
        yield from ground[name].pieces()
        return
    shared = min(len(ground[name]), len(wanted)) if kind == "diff" else 0
    if shared:
        step = PIECE // WIDTHS[stored[name].dtype] * WIDTHS[wanted.dtype]  # as many elements as differences
        for diff, ours in zip(stored[name].pieces(), ground[name].pieces(0, shared, step), strict=True):
            yield form.join(diff, ours, wanted.dtype)
    if shared < len(wanted):
        yield from stored[name + PLAIN].pieces()


def _whole(name: str, wanted: RawTensor, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces, as long as the tensor has to be. ValueError where a delta contradicts itself."""
    found = 0
    try:
        for piece in pieces:
            found += len(piece)
            yield piece
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{wanted.file} does not hold the parts of {name}: {error}") from error
    if found != len(wanted):
        raise ValueError(f"{wanted.file}: the parts of {name} have {found} bytes, expected {len(wanted)}")


def _write(path: Path | None, head: bytes, tensors: Iterable[Iterator[bytes]], report: Report) -> str:
    """Write a file from its head and its data; the SHA-256 of it. No path: only that."""
    digest = hashlib.sha256(head)
    with open(path or os.devnull, "wb") as file:
        file.write(head)
        for pieces in tensors:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                report(len(piece))
    return digest.hexdigest()


def _check_file(name: str, file: FileRecord, found: str, record: DeltaRecord) -> None:
    if record.form == "xor" and found != file.sha256:
        raise ValueError(f"{name} came out with the digest {found[:16]}, expected {file.sha256[:16]}")
