"""A folder is complete or it is ignored: `manifest.json`, written last, has every file's size and SHA-256.

`seal` gives a folder that was written aside its own name. An older one of that name is kept until then.
"""

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
BLOCK = 1 << 22


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, files: list[Path] | None = None) -> None:
    """List `files` (default: all below the folder) with sizes and digests; everything reaches the disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if files is None else sorted(files)
    files = [path for path in files if path.name != MANIFEST]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_of, files))
        list(pool.map(_sync, files))
    rows = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests, strict=True)
    }
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps({"files": rows}, indent=1) + "\n")
    _sync(partial)
    os.replace(partial, folder / MANIFEST)
    _sync(folder)


def seal(aside: Path, final: Path) -> None:
    """Write the manifest of `aside` and give it its final name. An older folder of that name is replaced."""
    write_manifest(aside)
    if final.exists():
        old = final.with_name(f"{final.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        os.rename(aside, final)
        shutil.rmtree(old)
    else:
        os.rename(aside, final)
    _sync(final.parent)


def read_manifest(folder: Path) -> dict[str, dict]:
    """Name of a listed file -> size and sha256. ValueError, with the path, for any other form."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} has no {MANIFEST}: it was not written to its end")
    try:
        rows = json.loads(path.read_text())["files"]
        if not isinstance(rows, dict) or not rows:
            raise ValueError(f"it lists no files but {str(rows)[:80]}")
        if wrong := [name for name, row in rows.items() if not (_is_below(name) and _is_row(row))]:
            raise ValueError(f"{wrong[0]!r} is no file of this folder with a size and a SHA-256")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return rows


def _is_below(name: str) -> bool:
    """Whether a name, as it is written, leads to a file below a folder and to no other place."""
    path = PurePosixPath(name)
    return path.as_posix() == name and not path.is_absolute() and name != "." and ".." not in path.parts


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and type(row.get("size")) is int
        and isinstance(row.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", row["sha256"]) is not None
    )


def check(folder: Path, exact: bool = False) -> dict[str, dict]:
    """The rows of the manifest. ValueError that names what is missing, shorter or changed since it was
    written; `exact`, for folders from elsewhere: also what is not listed, and every link."""
    rows = read_manifest(folder)
    faults = _strangers(folder, rows) if exact else []
    if not faults:
        with ThreadPoolExecutor() as pool:
            faults = list(filter(None, pool.map(lambda name: _fault(folder / name, rows[name]), rows)))
    if faults:
        raise ValueError(f"{folder} is not what its {MANIFEST} says: {'; '.join(faults[:5])}")
    return rows


def _strangers(folder: Path, rows: dict) -> list[str]:
    """What lies below a folder and should not: files that are not listed, and all that is no file."""
    faults = []
    for place, folders, names in os.walk(folder):
        for name in sorted(folders + names):
            path = Path(place) / name
            told = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                faults.append(f"{told} is a link or a device")
            elif path.is_file() and told not in (MANIFEST, *rows):
                faults.append(f"{told} is not listed")
    return faults


def _fault(path: Path, row: dict) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if (size := path.stat().st_size) != row["size"]:
        return f"{path.name} has {size} bytes, expected {row['size']}"
    return None if sha256_of(path) == row["sha256"] else f"the bytes of {path.name} have changed"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
