"""Patch tokens of a frozen vision tower on disk: what was seen once is neither decoded nor seen again.

A file holds one medium. Its name is a digest of all that decides its contents: weights and config of the
tower, number format, how media are read, and which medium (path, size, time of last change, the span or times
that were asked for). What changes has another name, so nothing has to be invalidated. Files are written aside
and renamed: they are whole or not there.

Letters: N frames, P patches of a frame, D width.
"""

import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT = 2
"""Counts changes of what a file holds, or of how frames are chosen and resized."""


@dataclass(frozen=True)
class Seen:
    """A medium as the tower sees it. tokens: (N, P, D); times: float32 (N,) seconds."""

    tokens: Tensor
    times: Tensor


def tower_digest(tower: nn.Module) -> str:
    """SHA-256 of a tower's config and of its weights, with their names, shapes and number formats."""
    digest = hashlib.sha256(json.dumps(asdict(tower.config), sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureStore:
    """A folder of seen media, for one tower and one way to read media."""

    def __init__(self, folder: str | os.PathLike, **reading):
        """`reading`: plain values that decide what the tower makes of a file, such as its digest."""
        self._reading = {"format": FORMAT, **reading}
        self.folder = Path(folder) / self._digest({})[:16]

    def key(self, path: str | os.PathLike, **request) -> str:
        """The name of a medium as it lies on disk now, asked for in this way. OSError if it is not there."""
        real = Path(path).resolve()
        state = real.stat()
        return self._digest({"path": str(real), "size": state.st_size, "mtime": state.st_mtime_ns, **request})

    def _digest(self, values: dict) -> str:
        text = json.dumps(self._reading | values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def find(self, key: str) -> Seen | None:
        """A medium by its name, or None. A file that cannot be read (a failing disk) counts as not there."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            return Seen(**load_file(path))
        except (SafetensorError, TypeError):
            path.unlink(missing_ok=True)
            return None

    def keep(self, key: str, seen: Seen) -> None:
        """Write a medium, whole or not at all; of several writers of one name the last wins."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in vars(seen).items()}, aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
