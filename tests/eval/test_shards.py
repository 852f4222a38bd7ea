"""Any number of processes, killed or not, leaves the same result, byte by byte."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quicksviewer.eval import run
from quicksviewer.eval.answering import make_batches
from quicksviewer.eval.eval_world import samples
from quicksviewer.eval.records import Records
from quicksviewer.eval.run import main

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--batch-size", "3", "--blind", "--device", "cpu"]


def words(model, tiny, out, *more) -> list[str]:
    words = ["world", "--model-path", model, "--data", tiny / "data", "--output", out, *FLAGS, *more]
    return [str(word) for word in words]


def content(path: Path) -> str:
    """The file; the commit of the code that was tested may have moved on."""
    return re.sub(r'"code": \[[^]]*\]', '"code": []', path.read_text())


@pytest.fixture(scope="module")
def calm(tiny, learnt, tmp_path_factory):
    """The result of one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("calm") / "result.json"
    assert main(words(learnt, tiny, out)) == 0
    return out


def test_the_model_knows_some_answers(calm):
    """So that equal results say something: four of six are right, and noise is another question."""
    records = json.loads(calm.read_text())["records"]
    assert sum(record["scores"]["accuracy"] for record in records) >= 4
    assert any(record["answers"] != record["blind_answers"] for record in records)


def as_rank(monkeypatch, rank: int, world: int) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("world", [2, 4])
def test_shards_make_the_same_result(tiny, learnt, calm, tmp_path, monkeypatch, capsys, world):
    """The processes of a launcher, one after the other: whoever is last writes the result."""
    monkeypatch.setattr(run, "meet", lambda world: None)
    out = tmp_path / "result.json"
    for rank in reversed(range(world)):
        assert not out.exists()
        as_rank(monkeypatch, rank, world)
        assert main(words(learnt, tiny, out)) == 0
        files = sorted(path.name for path in tmp_path.glob("*.parts/records-*"))
        assert files == [f"records-{n + 1}-of-{world}.jsonl" for n in range(rank, world)] or rank == 0
    assert content(out) == content(calm) and not Records(out.with_name("result.json.parts")).folder.exists()
    assert capsys.readouterr().err.count(f"of {world} is done") == world - 1


def test_processes_of_a_launcher_make_the_same_result(tiny, learnt, calm, tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "quicksviewer", "eval", *words(learnt, tiny, out, "--processes", "2")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(out) == content(calm)
    assert "accuracy=" in done.stdout.splitlines()[-1] and done.stdout.count("accuracy=") == 1


@pytest.mark.slow
def test_four_processes_make_the_same_result(tiny, learnt, calm, tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "quicksviewer", "eval", *words(learnt, tiny, out, "--processes", "4")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(out) == content(calm)


def test_a_killed_run_goes_on_and_ends_the_same(tiny, learnt, calm, tmp_path, monkeypatch):
    """kill -9 as soon as two batches are on the disk, and a line that the kill might have cut short."""
    out = tmp_path / "result.json"
    parts = out.with_name("result.json.parts")
    process = subprocess.Popen(
        [sys.executable, "-m", "quicksviewer", "eval", *words(learnt, tiny, out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while Records(parts).count() < 2:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = Records(parts).finished()
    assert len(before) >= 2 and not out.exists()
    with (parts / "records-1-of-1.jsonl").open("a") as file:
        file.write('{"batch": 7, "records": [{"ui')
    asked = []
    compute = run.Evaluation.compute

    def watched(self, loaded, numbers, *rest):
        asked.extend(numbers)
        return compute(self, loaded, numbers, *rest)

    monkeypatch.setattr(run.Evaluation, "compute", watched)
    assert main(words(learnt, tiny, out)) == 0
    assert content(out) == content(calm) and not parts.exists()
    total = len(make_batches(list(samples(tiny / "data")), 3))
    assert sorted([*asked, *before]) == list(range(total)), "each batch is computed once"


def test_another_number_of_processes_goes_on_too(tiny, learnt, calm, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "meet", lambda world: None)
    out = tmp_path / "result.json"
    as_rank(monkeypatch, 1, 3)
    assert main(words(learnt, tiny, out)) == 0 and not out.exists()
    as_rank(monkeypatch, 0, 1)
    assert main(words(learnt, tiny, out)) == 0
    assert content(out) == content(calm)


def test_records_of_other_settings_are_refused(tiny, learnt, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "meet", lambda world: None)
    out = tmp_path / "result.json"
    as_rank(monkeypatch, 0, 2)
    assert main(words(learnt, tiny, out, "--limit", "6")) == 0
    as_rank(monkeypatch, 0, 1)
    assert main(words(learnt, tiny, out, "--limit", "6", "--frames", "4", "--seed", "1")) == 2
    assert "had another media, seed; give --fresh" in capsys.readouterr().err
    assert main(words(learnt, tiny, out, "--limit", "6", "--seed", "1", "--fresh")) == 0
    assert json.loads(out.read_text())["seed"] == 1
    as_rank(monkeypatch, 0, 2)
    assert main(words(learnt, tiny, out, "--fresh")) == 2
    assert "--fresh under a launcher" in capsys.readouterr().err


def test_without_a_record_nothing_is_refused(tmp_path):
    records = Records(tmp_path / "r.parts")
    records.begin({"seed": 1})
    records.begin({"seed": 2})  # the first run ended before its first answer
    with records.writer("records-1-of-1") as writer:
        writer.write({"batch": 0})
    with pytest.raises(ValueError, match="had another seed, task"):
        records.begin({"seed": 3, "task": "x"})
    records.begin({"seed": 2})


def test_two_runs_do_not_write_into_one_file(tiny, learnt, tmp_path, capsys):
    out = tmp_path / "result.json"
    with Records(out.with_name("result.json.parts")).writer("records-1-of-1"):
        assert main(words(learnt, tiny, out, "--limit", "3")) == 2
    assert "is the same run going on?" in capsys.readouterr().err


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_batch_has_one_process(tmp_path, world):
    """Of what is left, too: who has finished what does not change whose the others are."""
    from quicksviewer.eval.evaluation import Evaluation

    evaluation = Evaluation(task=None, items=[], out=tmp_path / "r.json", settings={})
    evaluation.__dict__["batches"] = [[]] * 11
    shares = [evaluation.share(rank, world) for rank in range(world)]
    assert sorted(sum(shares, [])) == list(range(11))
    with evaluation.records.writer("records-1-of-9") as writer:
        for number in (3, 4, 10):
            writer.write({"batch": number})
    later = [evaluation.share(rank, world) for rank in range(world)]
    assert later == [[n for n in share if n not in (3, 4, 10)] for share in shares]


# --- the script


def test_the_script_passes_its_four_words_on(tmp_path):
    script = ROOT / "quicksviewer/eval/run_eval.sh"
    done = subprocess.run(
        ["bash", script, "mvbench", "a checkpoint", "32", "1", "--data", "MVBench"],
        env={**os.environ, "DRY_RUN": "1", "NPROC_PER_NODE": "3"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shown = shlex.split(done.stdout)
    args = run._parser().parse_args(shown[shown.index("eval") + 1 :])
    assert (args.task, args.model_path, args.frames, args.fps) == ("mvbench", "a checkpoint", [32], 1.0)
    assert (args.processes, args.data) == (3, "MVBench")


@pytest.mark.slow
def test_the_script_evaluates(tiny, learnt, tmp_path):
    out = tmp_path / "result.json"
    script = ["bash", str(ROOT / "quicksviewer/eval/run_eval.sh"), "world", str(learnt), "4", "0.5"]
    more = ["--data", str(tiny / "data"), "--output", str(out), "--limit", "2", "--device", "cpu"]
    done = subprocess.run([*script, *more], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert (result["media"]["max_frames"], result["media"]["fps"]) == (4, 0.5) and result["items"] == 2


def test_the_script_says_what_it_wants():
    script = ["bash", str(ROOT / "quicksviewer/eval/run_eval.sh"), "world"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode != 0 and "checkpoint" in done.stderr
