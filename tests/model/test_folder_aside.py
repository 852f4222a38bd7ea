"""A run that is killed, robbed or not alone leaves a whole folder, or none and no obstacle."""

import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from checkpoint_pairs import contents, tensors

from quicksviewer.model import consolidate as consolidate_word
from quicksviewer.model import delta as delta_module
from quicksviewer.model import folder_aside, raw_weights
from quicksviewer.model.consolidate import consolidate
from quicksviewer.model.delta import apply_delta, make_delta
from quicksviewer.utils.manifest import MANIFEST, check

# --- kills ---


OPERATIONS = {"open", "fcntl.flock", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
"""Events of Python's audit hooks that are an instant here; copying opens files, removing lists folders."""
INSTANTS = 20


def operation_of(event: str, args: tuple, folder: Path) -> str | None:
    """ "os.rename made.partial" for an operation on files below a folder, as far as its events tell."""
    if event == "fcntl.flock":
        return event
    if event not in OPERATIONS or not isinstance(args[0], (str, os.PathLike)):
        return None
    path = Path(os.fspath(args[0]))
    told = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None
    return f"{event} {told}" if told or not path.is_absolute() else None


def forked(work, instant: int, folder: Path, diary: Path | None = None) -> bool:
    """Run `work(report)` in a process that is killed before its n-th operation on files or report. Whether it
    came so far; a diary gets a line for each."""
    if pid := os.fork():
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left, lines = [instant], []

    def pass_one(name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        lines.append(name)

    def hear(event, args):
        if name := operation_of(event, args, folder):
            pass_one(name)

    sys.addaudithook(hear)
    work(lambda _size: pass_one("report"))
    told = "\n".join(lines)
    if diary is not None:
        diary.write_text(told)
    os._exit(0)


KILLED = {
    "delta": lambda at, report: make_delta(at / "base", at / "target", at / "delta", report=report),
    "made": lambda at, report: apply_delta(at / "base", at / "delta", at / "made", report=report),
    "small": lambda at, report: consolidate(at / "target", at / "small", "fp16", report=report),
}
PASSED = {
    "delta": ("open delta.partial/files/config.json", "open delta.partial/delta.json"),
    "made": ("open made.partial/config.json", "open made.partial/model-00002-of-00002.safetensors"),
    "small": ("open small.partial/config.json", "open small.partial/model.safetensors"),
}
"""Some of the operations before which a run is killed, beside those that all have."""


@pytest.mark.parametrize("name", KILLED)
def test_a_kill_at_any_instant_leaves_no_result_or_a_whole_one_and_no_obstacle(pair, name, monkeypatch):
    monkeypatch.setattr(raw_weights.RawTensor.pieces, "__defaults__", (0, None, 512))
    monkeypatch.setattr("quicksviewer.model.delta.PIECE", 512)
    if name == "made":
        make_delta(pair / "base", pair / "target", pair / "delta")
    final, diary = pair / name, pair / "diary"
    work = partial(KILLED[name], pair)
    assert not forked(work, 10**9, pair, diary)
    lines, wanted = diary.read_text().splitlines(), contents(final)
    ends = [f"open {name}.partial/{MANIFEST}.partial", f"os.rename {name}.partial", f"os.remove {name}.lock"]
    places = [lines.index(line) for line in (*PASSED[name], *ends)]
    spread = {round(i * (len(lines) - 1) / (INSTANTS - 1)) for i in range(INSTANTS)}
    for instant in sorted(spread | set(places)):
        for left in (final, pair / f"{name}.partial"):
            shutil.rmtree(left, ignore_errors=True)
        assert forked(work, instant, pair), lines[instant]
        assert final.exists() == (instant > places[-2]), lines[instant]
        if instant in places and not final.exists():  # the next run takes over what lies there
            assert not forked(work, 10**9, pair)
            assert not (pair / f"{name}.partial").exists() and not (pair / f"{name}.lock").exists()
        if final.exists():
            check(final, exact=True)
            assert contents(final) == wanted


# --- two runs to one folder ---


WRITERS = {
    "make": lambda at: make_delta(at / "base", at / "target", at / "out"),
    "apply": lambda at: apply_delta(at / "base", at / "delta", at / "out"),
    "consolidate": lambda at: consolidate(at / "target", at / "out", "bf16"),
}


@pytest.mark.parametrize("word", WRITERS)
def test_of_two_runs_to_one_folder_the_second_is_refused_and_the_first_is_whole(pair, word, monkeypatch):
    make_delta(pair / "base", pair / "target", pair / "delta")
    seal, refused = folder_aside.seal, []

    def sealed_while_another_starts(aside, final):
        with pytest.raises(ValueError, match=r"another run is writing .*out") as error:
            WRITERS[word](pair)
        refused.append(error)
        seal(aside, final)

    monkeypatch.setattr(folder_aside, "seal", sealed_while_another_starts)
    WRITERS[word](pair)
    assert len(refused) == 1
    check(pair / "out", exact=True)
    if word != "make":
        assert tensors(pair / "out").keys() == tensors(pair / "target").keys()
    assert {path.name for path in pair.iterdir()} == {"base", "target", "delta", "out"}


@pytest.mark.parametrize("word", WRITERS)
def test_a_folder_that_lost_its_weights_gets_no_name(pair, word, monkeypatch):
    make_delta(pair / "base", pair / "target", pair / "delta")
    seal_weights = folder_aside.seal_weights

    def robbed(aside, final, names):
        next(aside.glob("*.safetensors")).unlink()
        seal_weights(aside, final, names)

    for module in (delta_module, consolidate_word):
        monkeypatch.setattr(module, "seal_weights", robbed)
    with pytest.raises(ValueError, match=r"something else changed the folder"):
        WRITERS[word](pair)
    assert {path.name for path in pair.iterdir()} == {"base", "target", "delta"}
