"""A conversion as a whole: the same bytes from any processes, stops and starts, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import fsspec
import pytest
from public_data import onevision_rows, tree, turns, write_json

from quicksviewer.data.preprocess import modality, parse_sample
from quicksviewer.data.sources import open_source
from quicksviewer.preprocess import task
from quicksviewer.preprocess.convert import main

ROWS = 14


@pytest.fixture(scope="module")
def rows(tmp_path_factory, stock):
    return onevision_rows(tmp_path_factory.mktemp("rows"), stock, ROWS)


def run(rows, out, *words) -> int:
    base = ["llavaov_single_image", "--input", str(rows), "--output", str(out), "--rows_per_shard", "3"]
    return main([*base, "--num_workers", "1", *words])


@pytest.fixture(scope="module")
def reference(rows, tmp_path_factory):
    """What one process makes, in one go."""
    out = tmp_path_factory.mktemp("reference")
    assert run(rows, out) == 0
    return out


def test_the_number_of_processes_and_the_size_of_shards_do_not_matter(rows, reference, tmp_path):
    assert run(rows, tmp_path / "two", "--num_workers", "2") == 0
    assert run(rows, tmp_path / "whole", "--rows_per_shard", "1000") == 0
    assert tree(tmp_path / "two") == tree(tmp_path / "whole") == tree(reference)
    assert len(tree(reference)) == 2 + ROWS - ROWS // 5  # rows, ledger, and a file for each good picture


def test_what_is_finished_is_not_made_again(rows, reference, tmp_path, monkeypatch):
    """A process that is killed leaves finished shards, one that is half there, and files that are aside."""
    made, original = [], task._convert_shard

    def until_the_third(shard_task):
        made.append(shard_task.shard.number)
        if len(made) == 3:
            work = tmp_path / ".llavaov_single_image.shards/000002"
            work.mkdir()
            (work / "part.jsonl.aside").write_bytes(b"half a ro")
            (work / "part.jsonl").write_bytes(b"of another time\n")
            raise MemoryError("killed")
        return original(shard_task)

    monkeypatch.setattr(task, "_convert_shard", until_the_third)
    with pytest.raises(MemoryError):
        run(rows, tmp_path)
    assert not list(tmp_path.glob("*.jsonl"))
    assert run(rows, tmp_path) == 0
    assert made == [0, 1, 2, 2, 3, 4]
    assert tree(tmp_path) == tree(reference)


def test_a_stop_while_the_output_is_put_together_loses_nothing(rows, reference, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("quicksviewer.preprocess.job._write_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(rows, tmp_path)
    monkeypatch.setattr(task, "_convert_shard", lambda *_: pytest.fail("a finished shard was made again"))
    assert run(rows, tmp_path) == 0
    assert tree(tmp_path) == tree(reference)


def test_ctrl_c_ends_all_processes_and_the_same_command_goes_on(tmp_path, stock):
    (tmp_path / "a.jpg").write_bytes(stock.jpeg)
    talk = turns("<image>?", "yes")
    write_json(
        tmp_path / "chat.json", [{"id": str(i), "image": "a.jpg", "conversations": talk} for i in range(600)]
    )
    words = ["llavapretrain", "--input", f"{tmp_path}/chat.json", "--media_root", str(tmp_path)]
    words += ["--output", f"{tmp_path}/out", "--rows_per_shard", "1"]
    command = [sys.executable, "-m", "quicksviewer", "preprocess", *words, "--num_workers", "2"]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    shards, deadline = tmp_path / "out/.llavapretrain.shards", time.monotonic() + 100
    while len(list(shards.glob("*/done.json"))) < 4 and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    assert job.wait(timeout=60) == 130
    assert "the same command goes on" in (said := job.stderr.read()) and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:  # the server of the pool notices that we are gone
            os.killpg(job.pid, 0)
            time.sleep(0.05)
    finished = len(list(shards.glob("*/done.json")))
    assert 4 <= finished < 600 and not (tmp_path / "out/llavapretrain.jsonl").exists()
    assert main([*words, "--num_workers", "1"]) == 0
    uids = [json.loads(line)["uid"] for line in (tmp_path / "out/llavapretrain.jsonl").open()]
    assert uids == [f"llavapretrain_chat_{number}" for number in range(600)]


def test_other_settings_are_refused(rows, reference, tmp_path, capsys):
    assert run(rows, reference, "--rows_per_shard", "4") == 2
    assert "rows_per_shard: 3, now 4" in capsys.readouterr().err
    (tmp_path / ".llavaov_single_image.shards").mkdir()
    (tmp_path / ".llavaov_single_image.shards/settings.json").write_text('{"settings": {"inputs": []}}')
    assert run(rows, tmp_path) == 2
    assert "is of other settings" in capsys.readouterr().err


def test_a_changed_output_is_noticed(rows, tmp_path, capsys):
    assert run(rows, tmp_path) == 0
    (tmp_path / "llavaov_single_image.jsonl").write_text("")
    assert run(rows, tmp_path) == 2
    assert "llavaov_single_image.jsonl changed since" in capsys.readouterr().err


def test_a_range_of_rows_is_those_rows(rows, reference, tmp_path):
    assert run(rows, tmp_path, "--samples_range", "4_9") == 0
    whole = (reference / "llavaov_single_image.jsonl").read_bytes().splitlines()
    part = (tmp_path / "llavaov_single_image.jsonl").read_bytes().splitlines()
    numbers = [int(json.loads(line)["uid"].rpartition("_")[2]) for line in part]
    assert numbers == [5, 6, 7, 8]  # row 4 has a damaged picture
    assert part == [line for line in whole if json.loads(line)["uid"].endswith(("_5", "_6", "_7", "_8"))]


def test_too_many_lost_rows_are_a_failure(rows, tmp_path, capsys):
    assert run(rows, tmp_path, "--max_skipped", "0.1") == 1
    assert "2 of 14 rows gave nothing" in capsys.readouterr().err


def test_another_data_set_is_refused_with_file_row_and_what_was_expected(rows, tmp_path, capsys):
    write_json(tmp_path / "chat.json", [{"id": 1, "picture": "a.jpg"}])
    words = ["--media_root", str(tmp_path), "--output", f"{tmp_path}/out"]
    assert main(["llavapretrain", "--input", f"{tmp_path}/chat.json", *words]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/chat.json, row 0: 'image' is missing, expected a text" in said
    assert main(["longvilasft", "--input", str(rows), *words]) == 2
    assert f"{rows}: column video missing; it has id, image, conversations" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["obelix"], "Did you mean 'obelics'"),
        (["llavapretrain", "--input", "x.json", "--output", "o"], "give their folder, --media_root"),
        (["obelics", "--input", "x.parquet", "--output", "o", "--media_root", "m"], "has no use"),
        (["obelics", "--input", "none.parquet", "--output", "o"], "no data at"),
        (
            ["videochat2it_youcook2", "--input", "x", "--output", "o", "--media_root", "m"],
            "needs --extra annot",
        ),
        (["obelics", "--input", "x", "--output", "o", "--extra", "annotations"], "WORD=FILE"),
        (
            ["obelics", "--input", "x", "--output", "o", "--num_workers", "0"],
            "num_workers must be at least 1",
        ),
        (["obelics", "--input", "x", "--output", "o", "--samples_range", "5_5"], "no rows"),
        (["obelics", "--input", "x", "--output", "o", "--name", "../a"], "must be a plain word"),
        (
            ["obelics", "--input", "x", "--output", "memory://o", "--tsv_output", "t"],
            "folders of this machine",
        ),
    ],
)
def test_wrong_usage_is_told(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_object_stores_give_the_same_bytes(rows, reference, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/in/rows.parquet", rows.read_bytes())
    assert run("memory://in/rows.parquet", "memory://out") == 0
    assert run(f"file://{rows}", f"file://{tmp_path}/out") == 0
    found = {path.removeprefix("/out/"): memory.cat_file(path) for path in memory.find("/out")}
    assert {name: data for name, data in found.items() if not name.endswith(".report.json")} == tree(
        reference
    )
    assert tree(tmp_path / "out") == tree(reference)
    memory.rm("/in", recursive=True)
    memory.rm("/out", recursive=True)


def test_media_in_an_object_store_are_looked_at_and_copied_to_be_decoded(tmp_path, stock, capsys):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/videos/a/1.mp4", stock.clip.read_bytes())
    memory.pipe_file("/videos/a/2.mp4", b"#EXTM3U\n/etc/passwd\n")
    pair = [{"i": "What?", "q": "", "a": "A lamp."}]
    write_json(tmp_path / "train.json", [{"video": f"a/{name}.mp4", "QA": pair} for name in (1, 2, 3)])
    words = ["webvid400k", "--input", f"{tmp_path}/train.json", "--media_root", "memory://videos"]
    words += ["--output", f"{tmp_path}/out", "--check_media", "decode", "--isolation", "none"]
    assert main([*words, "--num_workers", "2"]) == 2
    assert "is in the memory of this process" in capsys.readouterr().err
    assert main([*words, "--num_workers", "1", "--max_skipped", "0.9"]) == 0
    ledger = [json.loads(line) for line in (tmp_path / "out/webvid400k.skipped.jsonl").open()]
    assert [entry["reason"] for entry in ledger] == ["medium refused", "medium missing"]
    assert "playlist" in ledger[0]["detail"]
    memory.rm("/videos", recursive=True)


def test_training_reads_what_the_report_says(reference):
    (entry,) = json.loads((reference / "llavaov_single_image.report.json").read_text())["mixture"]
    source = open_source(entry["path"], media_root=entry["media_root"])
    samples = [parse_sample(*source[index]) for index in range(len(source))]
    assert len(samples) == ROWS - ROWS // 5
    assert {modality(sample) for sample in samples} == {"image"}
    assert all(os.path.exists(medium.path) for sample in samples for medium in sample.media)
