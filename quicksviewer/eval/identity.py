"""What a result says of where it comes from: weights, code, libraries, device."""

import hashlib
import json
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import quicksviewer
from quicksviewer.model.builder import ADAPTER_FILE
from quicksviewer.utils.commit import commit_of
from quicksviewer.utils.manifest import sha256_of

PACKAGE = Path(quicksviewer.__file__).parent
WEIGHTS = ".safetensors"
MODEL_FILES = (
    *(
        f"*{WEIGHTS}",
        f"*{WEIGHTS}.index.json",
        "config.json",
        "generation_config.json",
        "adapter_config.json",
    ),
    *("processor_config.json", "*preprocessor_config.json", "chat_template*", "tokenizer*", "*.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken"),
)
"""Files of a checkpoint on which its answers depend; results and the states of a run may lie beside them."""


def weights_hash(folder: str | Path) -> str:
    """SHA-256 over all files that make a model what it is: weights, settings, words, with their names.
    ValueError for a folder without weight files that can be read."""
    paths = sorted({path for pattern in MODEL_FILES for path in Path(folder).glob(pattern) if path.is_file()})
    if not any(path.suffix == WEIGHTS for path in paths):
        raise ValueError(f"{folder} has no weight files (*{WEIGHTS}); other formats are not read")
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.name} {sha256_of(path)}\n".encode())
    return whole.hexdigest()


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
    """The version, and the commit where it is known: "0.1.0+1234abc"; with "+changes" where files of the
    package are not as committed."""
    commit = commit_of(package)
    return f"{quicksviewer.__version__}+{commit}" if commit else quicksviewer.__version__


def machine_facts(device: str) -> dict[str, str]:
    """Versions and the kind of device: what numbers may depend on."""
    kind = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device)
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {"device": kind, "python": platform.python_version(), **libraries}


def digest_of(value: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
