"""What a result says of where it comes from: weights, code, libraries, device."""

import hashlib
import json
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import quicksviewer
from quicksviewer.model.builder import ADAPTER_FILE

PACKAGE = Path(quicksviewer.__file__).parent


def weights_hash(folder: str | Path) -> str:
    """SHA-256 over the weight files of a checkpoint, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def model_facts(folder: str, base: str | None) -> dict[str, str]:
    """Path and hash of a checkpoint; of an adapter also those of what it is added to."""
    facts = {"model": str(folder), "weights_sha256": weights_hash(folder)}
    adapter = Path(folder) / ADAPTER_FILE
    if adapter.is_file():
        base = base or json.loads(adapter.read_text())["base_model_name_or_path"]
        facts |= {"base": str(base), "base_weights_sha256": weights_hash(base)}
    return facts


@cache
def code_facts(package: Path = PACKAGE) -> str:
    """The version, and the commit where the package lies in a git checkout of its own: "0.1.0+1234abc"; with
    "+changes" where files of the package are not as committed."""
    if not (package.parent / ".git").exists():
        return quicksviewer.__version__
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return quicksviewer.__version__
    changed = _git(package, "status", "--porcelain", "--", ".")
    return f"{quicksviewer.__version__}+{commit}{'+changes' if changed else ''}"


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None where it is not there or refuses."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine_facts(device: str) -> dict[str, str]:
    """Versions and the kind of device: what numbers may depend on."""
    kind = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device)
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {"device": kind, "python": platform.python_version(), **libraries}


def digest_of(value: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
