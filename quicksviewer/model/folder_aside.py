"""A folder of weights is written aside, by one run at a time, and gets its name when it is whole."""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quicksviewer.utils.manifest import seal


@contextmanager
def folder_aside(final: Path) -> Iterator[Path]:
    """An empty folder to write what `seal_weights` then calls `final`; after an error it is gone.

    ValueError where `final` exists, and where another run is writing it. What a killed run left is removed.
    """
    with _only_writer(final):
        if final.exists():
            raise ValueError(f"{final} exists; a result is written once")
        aside = final.with_name(f"{final.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


@contextmanager
def _only_writer(final: Path) -> Iterator[None]:
    """Hold NAME.lock. The system lets go of it when a process dies, so that a file left behind locks
    nothing."""
    path = final.with_name(f"{final.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        if not is_ours:  # or it was, until the other run removed the file that we had opened
            raise ValueError(f"another run is writing {final}; wait for its end, or write elsewhere")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def seal_weights(aside: Path, final: Path, names: Iterable[str]) -> None:
    """Give a folder its manifest and its name. ValueError unless its weight files are those of `names`."""
    wanted, found = set(names), {path.name for path in aside.glob("*.safetensors")}
    if not wanted or wanted != found:
        raise ValueError(
            f"{aside} has the weight files {sorted(found)}, written were {sorted(wanted)}: something else "
            "changed the folder"
        )
    seal(aside, final)
