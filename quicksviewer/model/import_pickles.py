"""Weights of a foreign folder as safetensors files: its own, or made from its pickles by a process that may
fail.

Nothing is unpickled here: unpickle_child.py does it, restricted and bounded, one file at a time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from quicksviewer.model.raw_weights import INDEX, SINGLE, RawTensor, read_file, read_folder
from quicksviewer.model.unpickle_child import SECONDS

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def read_weights(folder: Path, workspace: Path) -> dict[str, RawTensor]:
    """All tensors of a folder by their names there; what its pickles hold is written into `workspace` first.

    ValueError for a folder without weights, or with a file that cannot be trusted or read.
    """
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return read_folder(folder)
    found: dict[str, RawTensor] = {}
    workspace.mkdir(parents=True)
    for path in _pickles(folder):
        made = workspace / f"{path.stem}.safetensors"
        unpickle(path, made)
        tensors = read_file(made).tensors
        if twice := found.keys() & tensors.keys():
            raise ValueError(f"{sorted(twice)[0]} is in several files of {folder}")
        found |= tensors
    return found


def _pickles(folder: Path) -> list[Path]:
    if (folder / PICKLE).is_file():
        return [folder / PICKLE]
    path = folder / PICKLE_INDEX
    if not path.is_file():
        raise ValueError(
            f"{folder} has no weights: none of {SINGLE}, {INDEX}, {PICKLE}, {PICKLE_INDEX}. An adapter file "
            "alone (mm_projector.bin) is no checkpoint"
        )
    try:
        names = set(json.loads(path.read_text())["weight_map"].values())
        if wrong := [name for name in names if Path(name).name != name or not name.endswith(".bin")]:
            raise ValueError(f"{wrong[0]!r} is no weight file beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return [folder / name for name in sorted(names)]


def unpickle(path: Path, made: Path) -> None:
    """Write the tensors of a pickled file as safetensors. ValueError, with what the other process said."""
    with path.open("rb") as source, made.open("wb") as target:
        fds = (source.fileno(), target.fileno())
        words = [sys.executable, "-P", "-m", "quicksviewer.model.unpickle_child", *map(str, fds)]
        path_env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                words,
                pass_fds=fds,
                env=os.environ | path_env,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{path} was not read within {SECONDS} s") from None
    if done.returncode:
        made.unlink()
        how = done.stdout.strip() or done.stderr.strip()[-500:] or f"exit code {done.returncode}"
        raise ValueError(f"{path} holds something else than tensors, or too much: {how}")
