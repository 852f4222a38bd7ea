"""`quicksviewer data stats`: figures of rows whose sizes are known, from files and from a manifest."""

import json

import numpy as np
import pytest
from bad_files import row, write_files
from tiny_world import fresh

from quicksviewer.__main__ import main
from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.survey import sizes
from quicksviewer.survey.command import WORDS
from quicksviewer.survey.sizes import summary

ROWS = [
    row("a", video="{}/good.mp4", source="films"),
    row("b", video="{}/good.mp4", source="films", start_sec=0.5, end_sec=1.5),
    row("c", image="{}/good.jpg", source="[red]pictures"),
    row("d", "Who?", "blue, and more of it"),
    row("e", video="{}/nowhere.mp4"),
]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """rows.jsonl, its media, and a model folder to read them with."""
    folder = tmp_path_factory.mktemp("stats")
    write_files(folder)
    lines = [json.dumps(one).replace("{}", str(folder)) for one in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    loaded = fresh(tiny)
    loaded.model.save_pretrained(folder / "model")
    loaded.processor.save_pretrained(folder / "model")
    return folder


def stats(folder, out, *words) -> dict:
    line = ["--data", str(folder / "rows.jsonl"), "--model", str(folder / "model"), "--out", str(out)]
    assert main(["data", "stats", *line, *words]) == 0
    return json.loads((out / "stats.json").read_text())


def test_figures_are_those_of_the_rows_that_training_would_load(tiny, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    found = stats(folder, tmp_path, "--workers", "2", "--plots", "--max_length", "40")
    mixture = Mixture(parse_mixture(str(folder / "rows.jsonl")))
    data = LazySupervisedDataset(mixture, fresh(tiny).processor, 10_000)
    real = [data.load(index) for index in range(4)]
    tokens = [len(one["input_ids"]) for one in real]
    frames = [sum(one.get("medium_frames", [])) for one in real]
    assert found["tokens"] == summary(np.array(tokens)) and found["frames"] == summary(np.array(frames))
    assert found["seconds"]["total"] == pytest.approx(3.0) and found["rows"] == 4
    assert found["over_max_length"] == sum(count > 40 for count in tokens)
    (unusable,) = found["unusable"]
    assert unusable["where"].endswith("rows.jsonl:5") and "nowhere.mp4" in unusable["reason"]
    groups = {(one["source"], one["modality"]): one["rows"] for one in found["groups"]}
    assert groups == {("films", "video"): 2, ("[red]pictures", "image"): 1, ("rows", "text"): 1}
    assert "[red]pictures" in capsys.readouterr().out  # no markup of the terminal either
    for name in ("tokens", "frames", "seconds"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_manifest_gives_the_same_figures_without_the_files(folder, tmp_path):
    manifest = str(tmp_path / "manifest.parquet")
    line = [str(folder / "rows.jsonl"), "--output", manifest, "--model", str(folder / "model")]
    assert main(["data", "index", *line, "--workers", "0"]) == 0
    measured = stats(folder, tmp_path / "a", "--workers", "0")
    (folder / "good.mp4").rename(folder / "away.mp4")
    try:
        known = stats(folder, tmp_path / "b", "--workers", "0", "--manifest", manifest)
    finally:
        (folder / "away.mp4").rename(folder / "good.mp4")
    assert known == measured


def test_with_a_manifest_no_row_is_read(folder, tmp_path, monkeypatch):
    manifest = str(tmp_path / "manifest.parquet")
    line = [str(folder / "rows.jsonl"), "--output", manifest, "--model", str(folder / "model")]
    assert main(["data", "index", *line, "--workers", "0"]) == 0
    measured = stats(folder, tmp_path / "a", "--workers", "0")
    monkeypatch.setattr(sizes, "parse_sample", lambda *_: pytest.fail("a row was read"))
    assert stats(folder, tmp_path / "b", "--workers", "0", "--manifest", manifest) == measured


def test_a_missing_manifest_is_wrong_usage(folder, tmp_path, capsys):
    line = ["--data", str(folder / "rows.jsonl"), "--model", str(folder / "model"), "--out", str(tmp_path)]
    assert main(["data", "stats", *line, "--manifest", str(tmp_path / "none.parquet")]) == 2
    assert "none.parquet" in capsys.readouterr().err


def test_without_a_row_that_can_be_read_there_is_nothing_to_tell(folder, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"uid": \n')
    line = ["--data", str(tmp_path / "rows.jsonl"), "--model", str(folder / "model"), "--workers", "0"]
    assert main(["data", "stats", *line]) == 2
    assert "no row to measure" in capsys.readouterr().err


# --- the table of words ---


def test_data_is_a_table_of_words(capsys):
    assert main(["data", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {word}" in shown for word in WORDS)
    assert main(["data"]) == 2
    assert main(["data", "chekc"]) == 2
    assert "Did you mean 'check'" in capsys.readouterr().err


@pytest.mark.parametrize("word", WORDS)
def test_every_word_tells_its_options(capsys, word):
    assert main(["data", word, "--help"]) == 0
    assert f"quicksviewer data{'' if word == 'make' else f' {word}'}" in capsys.readouterr().out


def test_make_refuses_as_before(capsys):
    assert main(["data", "make", "--recipe", "7b"]) == 2
    assert "no section 'synthetic'" in capsys.readouterr().err
