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
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from quicksviewer.model.delta_forms import FLOATS, FORMS, Form
from quicksviewer.model.folder_aside import folder_aside, seal_weights
from quicksviewer.model.raw_weights import (
    PIECE,
    WIDTHS,
    RawTensor,
    copy_others,
    head_of,
    is_other,
    read_file,
    read_folder,
    tensors_of,
    weight_files,
)
from quicksviewer.utils.config import build, load_mapping
from quicksviewer.utils.manifest import MANIFEST, check, sha256_of
from quicksviewer.utils.registry import lookup

RECORD, FILES, VERSION = "delta.json", "files", 2
PLAIN = "//rows"
"""Ending of the name under which rows are stored as they are; differences have the name of their tensor."""
WEIGHTS = ".safetensors"
PROGRAMS = (".py", ".pyc", ".pyd", ".pyo", ".pyw", ".so")
"""Endings of files that run; a delta carries data, and none of these."""
Report = Callable[[int], None]
"""Is told of bytes that are done."""


@dataclass(frozen=True)
class FileRecord:
    """A weight file of the target. `sha256`: of what base and delta give, with `xor` the file itself; `head`:
    hex of the bytes in front of its data; `kinds`: tensor -> kind."""

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


def make_delta(
    base: Path, target: Path, delta: Path, form: str = "xor", report: Report = lambda _: None
) -> DeltaRecord:
    """Write the folder from which, with `base`, `target` can be made again.

    ValueError for weights that cannot be read, an unknown form or one that cannot hold a difference, a folder
    that exists. After an error or a kill nothing lies under the final name.
    """
    lookup(FORMS, form, "form of a delta")
    ground, needed, files = read_folder(base), {}, {}
    with folder_aside(delta) as aside:
        for path in weight_files(target):
            files[path.name] = _make_file(path, aside / path.name, ground, form, needed, report)
        copy_others(target, aside / FILES, is_carried)
        record = DeltaRecord(VERSION, form, base.resolve().name, needed, files)
        (aside / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n")
        seal_weights(aside, delta, files)
    return record


def is_carried(name: str) -> bool:
    """Whether a file of a target goes along as it is: no weights, no manifest, nothing that would run or have
    to be unpickled."""
    return is_other(name) and Path(name).suffix.lower() not in PROGRAMS


def _make_file(path: Path, out: Path, ground: dict, form: str, needed: dict, report: Report) -> FileRecord:
    """Write the differences of a weight file, and note what will be made of them."""
    raw = read_file(path)
    kinds = {name: _kind(name, t, ground, form, needed, report) for name, t in raw.tensors.items()}
    stored = [
        entry
        for name, kind in kinds.items()
        if kind != "same"
        for entry in _stored(name, raw.tensors[name], ground.get(name) if kind == "diff" else None, form)
    ]
    _write(out, head_of({key: row for key, row, _ in stored}), (p for *_, p in stored), report)
    record = FileRecord(sha256_of(path), raw.head.hex(), kinds)
    if FORMS[form].stored is None:
        return record
    return replace(record, sha256=_write(None, *_joined(out, record, ground, form), report))


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
        yield name, (dtype, (rows, *target.shape[1:]), size), _differences(name, target, both, form)
    if shared < len(target):
        shape = (target.shape[0] - rows, *target.shape[1:]) if rows else target.shape
        yield name + PLAIN, (target.dtype, shape, len(target) - shared), target.pieces(shared)


def _differences(name: str, target: RawTensor, both: Iterable[tuple], form: str) -> Iterator[bytes]:
    for theirs, ours in both:
        try:
            yield FORMS[form].checked_diff(theirs, ours, target.dtype)
        except ValueError as error:
            raise ValueError(f"{target.file}: {name}, in the form {form}: {error}") from error


def apply_delta(base: Path, delta: Path, target: Path, report: Report = lambda _: None) -> DeltaRecord:
    """Write the target of a delta. Of form `xor` its files are those of the target, byte for byte.

    ValueError, before anything is written, for a delta that is damaged and for another base (its first tensor
    that differs is named); for a folder that exists.
    """
    record, carried = read_delta(delta)
    ground = read_folder(base)
    check_base(record, ground, base, report)
    with folder_aside(target) as aside:
        for name in record.files:
            _make(name, aside / name, delta, record, ground, report)
        for name in carried:
            shutil.copyfile(delta / FILES / name, aside / name)
        seal_weights(aside, target, record.files)
    return record


def verify_delta(base: Path, delta: Path, report: Report = lambda _: None) -> DeltaRecord:
    """Do all of `apply_delta` but write nothing. ValueError as there."""
    record, _ = read_delta(delta)
    ground = read_folder(base)
    check_base(record, ground, base, report)
    for name in record.files:
        _make(name, None, delta, record, ground, report)
    return record


def _make(
    name: str, path: Path | None, delta: Path, record: DeltaRecord, ground: dict, report: Report
) -> None:
    """Write a weight file of the target; no path: only see whether it is the right one."""
    file = record.files[name]
    found = _write(path, *_joined(delta / name, file, ground, record.form), report)
    if found != file.sha256:
        raise ValueError(
            f"{delta}: {name} came out with the digest {found[:16]}, expected {file.sha256[:16]}"
        )


def read_delta(delta: Path) -> tuple[DeltaRecord, list[str]]:
    """The record of a delta folder, and the names of what it carries in `files/`. ValueError unless all that
    lies there is as the manifest and the record say, and nothing else does."""
    listed, path = check(delta, exact=True), delta / RECORD
    if RECORD not in listed:
        raise ValueError(f"{delta} is no delta: its {MANIFEST} does not list {RECORD}")
    try:
        record = build(DeltaRecord, load_mapping(path), str(path))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    lookup(FORMS, record.form, f"form in {path}")
    if record.version != VERSION:
        raise ValueError(f"{path} has version {record.version}, read is version {VERSION}: make it again")
    if wrong := [name for name in record.files if Path(name).name != name or not name.endswith(WEIGHTS)]:
        raise ValueError(f"{path} names {wrong[0]!r}, which is no file beside it that ends with {WEIGHTS}")
    if missing := sorted(record.files.keys() - listed.keys()):
        raise ValueError(f"{path} names {missing[0]!r}, which the {MANIFEST} of {delta} does not list")
    others = [PurePosixPath(name) for name in listed if name != RECORD and name not in record.files]
    if wrong := [n for n in others if n.parts[:-1] != (FILES,) or not is_carried(n.name)]:
        raise ValueError(f"{delta / wrong[0]} has no place in a delta; it carries settings in {FILES}/ alone")
    return record, [name.name for name in others]


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
    try:
        head = bytes.fromhex(file.head)
    except ValueError as error:
        raise ValueError(f"{path}: the header in its record is not hexadecimal: {error}") from error
    stored, wanted = read_file(path).tensors, tensors_of(path, head)
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
