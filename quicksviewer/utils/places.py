"""Names that may be a path or a model on the hub, and what an error says where there is nothing at a path."""

import os
from pathlib import Path

MADE_BY = {
    "output/easy_vqa": "python -m quicksviewer.data.easy_vqa",
    "output/blip_vqa": "python -m quicksviewer train --recipe blip_vqa",
}
"""Folder that shipped files name -> the command that makes it in the folder in which it runs."""


def maker_of(path: str | os.PathLike) -> str | None:
    """The command that makes a path, or None where none of ours does."""
    whole = f"/{Path(os.path.normpath(path)).as_posix()}/"
    return next((command for folder, command in MADE_BY.items() if f"/{folder}/" in whole), None)


def missing(what: str, path: str | os.PathLike) -> str:
    """ "there is no WHAT at PATH", where a relative path was looked for, and what makes it."""
    told = f"there is no {what} at {os.fspath(path)}"
    told += "" if os.path.isabs(path) else f" in {os.getcwd()}"
    return f"{told}; it is made by {maker}" if (maker := maker_of(path)) else told


def may_be_on_hub(name: str | os.PathLike) -> bool:
    """Whether a model on the hub could have this name: a word, or an owner and a word."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(os.fspath(name))
    except HFValidationError:
        return False
    return True
