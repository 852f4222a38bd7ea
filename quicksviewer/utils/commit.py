"""Which commit the code is of: asked of git, or told by whoever copied the code without its checkout."""

import os
import subprocess
from pathlib import Path

VARIABLE = "QUICKSVIEWER_COMMIT"
"""Set in images, which have no checkout; read where there is none."""


def commit_of(package: Path) -> str | None:
    """The commit, with "+changes" where files of the package are not as committed. None where neither a git
    checkout of the package's own nor the variable says it."""
    if not (package.parent / ".git").exists():
        return os.environ.get(VARIABLE) or None
    commit = _git(package, "rev-parse", "HEAD")
    changed = commit and _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}+changes" if changed else commit


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None where it is not there or refuses."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
