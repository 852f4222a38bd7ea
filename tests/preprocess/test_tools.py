"""The TSV store, change_datasets, split_activitynet, and the example script."""

import base64
import json
import os
import shlex
import subprocess
import time

import numpy as np
import pytest
from public_data import CLIP_SECONDS, turns, write_json

from quicksviewer.data.preprocess import parse_sample
from quicksviewer.data.sources import open_source
from quicksviewer.preprocess import split_activitynet, store
from quicksviewer.preprocess.convert import _parser, main
from quicksviewer.preprocess.tables import find
from quicksviewer.synthetic.video import write_video
from quicksviewer.utils.data_util import TSVReader, open_video

NAMES = ["Straße/ä.mp4", "b.mp4", "c/東京.mp4"]
SHADES = [40, 120, 200]
"""Of the seconds of the clip."""
ONE = ["--num_workers", "1", "--isolation", "none"]


def shades(reader: TSVReader, name: str) -> list[int]:
    return [round(float(mean), -1) for mean in reader.frames(name).mean((1, 2, 3))]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def videos(tmp_path, stock):
    stock.clips(tmp_path / "videos", *NAMES)
    return tmp_path / "videos"


def test_a_conversion_can_write_the_store_of_its_videos(tmp_path, videos, stock):
    """Names that are not ASCII, a video of several rows, one that breaks in the middle: it is dropped."""
    clip = bytearray(stock.clip.read_bytes())
    start = clip.index(b"mdat") + 4
    clip[start : start + 300] = bytes(300)
    (videos / "broken.mp4").write_bytes(clip)
    told = [*NAMES, "broken.mp4", NAMES[0]]
    rows = [{"video": name, "QA": [{"i": f"{i}?", "a": "yes"}]} for i, name in enumerate(told)]
    write_json(tmp_path / "train.json", rows)
    words = ["webvid400k", "--input", f"{tmp_path}/train.json", "--video_dir", str(videos)]
    words += [
        "--output_dir",
        f"{tmp_path}/out",
        "--tsv_output_dir",
        f"{tmp_path}/any/folder",
        "--frame_side",
        "16",
    ]
    assert main([*words, *ONE]) == 0
    with TSVReader(tmp_path / "any/folder") as reader:
        assert reader.names == NAMES
        for name in NAMES:
            assert shades(reader, name) == SHADES
            assert reader.frames(name).shape == (CLIP_SECONDS, 16, 16, 3)
    source = open_source(str(tmp_path / "any/folder"))
    uids = [parse_sample(*source[index]).uid for index in range(len(source))]
    assert uids == [f"webvid400k_train_{row}_0" for row in (0, 1, 2, 4)]
    (entry,) = lines(tmp_path / "out/webvid400k.skipped.jsonl")
    assert (entry["uid"], entry["reason"]) == ("webvid400k_train_3_0", "medium refused")
    report = json.loads((tmp_path / "out/webvid400k.report.json").read_text())
    assert report["mixture"] == [{"path": f"{tmp_path}/any/folder"}]
    assert report["counts"]["samples"] == {"webvid400k.jsonl": 4}
    assert sorted(os.listdir(tmp_path / "any/folder")) == [
        *("chat.jsonl", "fname2idx.json", "imgs.last", "imgs.lineidx", "imgs.tsv"),
    ]


def test_2tsv_stores_a_folder_and_goes_on_after_a_stop(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(store, "VIDEOS_PER_TASK", 1)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(["2tsv", "--input", str(videos), "--output", str(whole), *ONE]) == 0
    calls = []

    def stop_behind_the_first(parts, folder, base):
        calls.append(base)
        if len(calls) == 1:
            store_join([parts[0]], folder, base)
            (folder / "imgs.tsv").open("ab").write(b"half a ro")
            raise KeyboardInterrupt
        return store_join(parts, folder, base)

    store_join = store.join
    monkeypatch.setattr(store, "join", stop_behind_the_first)
    assert main(["2tsv", "--input", str(videos), "--output", str(stopped), *ONE]) == 130
    assert main(["2tsv", "--input", str(videos), "--output", str(stopped), *ONE]) == 0
    for name in ("imgs.tsv", "imgs.lineidx", "imgs.last", "fname2idx.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    before = (whole / "imgs.tsv").stat().st_mtime_ns
    assert main(["2tsv", "--input", str(videos), "--output", str(whole), *ONE]) == 0
    assert (whole / "imgs.tsv").stat().st_mtime_ns == before


def test_2tsv_appends_rows_with_frames_and_aligns(tmp_path, videos, stock, capsys):
    target = tmp_path / "store"
    assert main(["2tsv", "--input", str(videos), "--output", str(target), *ONE]) == 0
    jpeg = base64.b64encode(stock.jpeg).decode()
    rows = [
        {"video": "d.mp4", "images": [jpeg, jpeg]},
        {"video": "e.mp4", "images": ["!!!"]},
        {"video": "f.mp4"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["2tsv", "--input", f"{tmp_path}/rows.jsonl", "--output", str(target), *ONE]
    assert main(words) == 2
    assert "--append adds to it" in capsys.readouterr().err
    assert main([*words, "--append"]) == 1  # two rows are bad, and told
    assert [entry["video"] for entry in lines(target / "skipped.jsonl")] == ["e.mp4", "rows.jsonl, row 2"]
    with TSVReader(target) as reader:
        assert reader.names == [*NAMES, "d.mp4"]
        assert reader.jpegs("d.mp4") == [stock.jpeg] * 2
        assert shades(reader, NAMES[2]) == SHADES
    good = (target / "imgs.tsv").read_bytes()
    (target / "imgs.tsv").write_bytes(good + b'cut.mp4\t["/9j/')
    (target / "imgs.lineidx").write_text("0\n5\n")
    assert main(["2tsv", "--output", str(target), "--align"]) == 0
    assert (target / "imgs.tsv").read_bytes() == good
    assert shades(TSVReader(target), NAMES[0]) == SHADES
    (target / "imgs.tsv").write_bytes(good.replace(jpeg.encode(), b"AAAA" + jpeg[4:].encode(), 1))
    assert main(["2tsv", "--output", str(target), "--align"]) == 1
    assert "d.mp4" in capsys.readouterr().err


def test_2tsv_appends_a_name_once(tmp_path, stock, monkeypatch, capsys):
    """The same rows again add nothing; a name in two shards is refused before anything is written."""
    monkeypatch.setattr(store, "VIDEOS_PER_TASK", 1)
    jpeg = base64.b64encode(stock.jpeg).decode()

    def rows(*names: str) -> list[str]:
        path = tmp_path / f"{'-'.join(names)}.jsonl"
        path.write_text("".join(json.dumps({"video": name, "images": [jpeg]}) + "\n" for name in names))
        return ["2tsv", "--input", str(path), "--output", str(tmp_path / "store"), "--append", *ONE]

    for names, told in ((("a", "b"), "2 videos stored, 2"), (("a", "b"), "0 videos stored, 2")):
        assert main(rows(*names)) == 0 and told in capsys.readouterr().out
    before = (tmp_path / "store/imgs.tsv").read_bytes()
    assert main(rows("b", "c")) == 0 and "1 videos stored, 3" in capsys.readouterr().out
    assert TSVReader(tmp_path / "store").names == ["a", "b", "c"]
    assert (tmp_path / "store/imgs.tsv").read_bytes()[: len(before)] == before
    whole = (tmp_path / "store/imgs.tsv").read_bytes()
    assert main(rows("d", "e", "d")) == 2
    assert "'d' comes twice, in frames-000000 and in frames-000002" in capsys.readouterr().err
    assert (tmp_path / "store/imgs.tsv").read_bytes() == whole


def test_2tsv_stores_the_videos_of_rows(tmp_path, videos):
    rows = [
        {"uid": f"a{i}", "data_type": "caption", "video": name, "caption": "."}
        for i, name in enumerate(NAMES)
    ]
    rows.append({**rows[0], "uid": "lost", "video": ["b.mp4", "none.mp4"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["2tsv", "--input", f"{tmp_path}/rows.jsonl", "--media_root", str(videos)]
    assert main([*words, "--output", f"{tmp_path}/store", *ONE]) == 1
    assert [row["uid"] for row in lines(tmp_path / "store/chat.jsonl")] == ["a0", "a1", "a2"]
    assert TSVReader(tmp_path / "store").names == NAMES


TALK = turns("<video>\nWhat?", "A lamp.")
BASE = {"data_type": "conversations", "conversations": TALK, "metadata": {"kept": [1]}}
OURS = {
    None: {"uid": "good", "video": "b.mp4", **BASE},
    "medium refused": {"uid": "kind", "video": "text.mp4", **BASE},
    "medium missing": {"uid": "gone", "video": "none.mp4", **BASE},
    "sample": {
        "uid": "role",
        "video": "b.mp4",
        **BASE,
        "conversations": [{**TALK[0], "from": "me"}, TALK[1]],
    },
}
"""Why a row is dropped -> row."""


def test_change_datasets_drops_what_cannot_be_used(tmp_path, videos):
    (videos / "text.mp4").write_text("no film")
    (tmp_path / "a_video.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OURS.values()))
    words = ["change_datasets", "--root_dir", str(tmp_path), "--num_workers", "1", "--max_skipped", "0.9"]
    assert main([*words, "--func", "filter", "--media_root", str(videos)]) == 0
    assert lines(tmp_path / "a_video_filtered.jsonl") == [OURS[None]]
    ledger = lines(tmp_path / "a_video_filtered.skipped.jsonl")
    expected = [(reason, row["uid"]) for reason, row in OURS.items() if reason]
    assert [(entry["reason"], entry["uid"]) for entry in ledger] == expected
    before = (tmp_path / "a_video_filtered.jsonl").stat().st_mtime_ns
    assert main([*words, "--func", "filter", "--media_root", str(videos)]) == 0
    assert (tmp_path / "a_video_filtered.jsonl").stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*filtered_filtered*"))


def test_change_datasets_rewrites_paths_and_nothing_else(tmp_path):
    row = OURS[None]
    rows = [
        row,
        {**row, "uid": "two", "video": ["b.mp4", "ab.mp4"], "conversations": turns("<video><video>", "2")},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["change_datasets", "--root_dir", str(tmp_path), "--num_workers", "1"]
    assert main([*words, "--src_ptr", "^b", "--tgt_str", "new/b", "--fields", "video"]) == 0
    paths = ["new/b.mp4", ["new/b.mp4", "ab.mp4"]]
    expected = [{**row, "video": video} for row, video in zip(rows, paths, strict=True)]
    assert lines(tmp_path / "a_newpath.jsonl") == expected


def test_change_datasets_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("{}\n")
    words = ["change_datasets", "--root_dir", str(tmp_path)]
    assert main(words) == 2 and "needs --src_ptr" in capsys.readouterr().err
    assert main([*words, "--src_ptr", "("]) == 2 and "no regular expression" in capsys.readouterr().err
    assert main([*words, "--keywords", "b"]) == 2 and "no .jsonl file" in capsys.readouterr().err


def test_videos_are_cut_where_the_picture_changes(tmp_path):
    """Scenes of 2, 1 and 3 seconds at 20 frames per second."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    frames = np.concatenate([np.repeat(noise[i : i + 1], 20 * s, 0) for i, s in enumerate((2, 1, 3))])
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/film.mp4", frames, 20)
    (tmp_path / "videos/not.mp4").write_text("no film")
    words = ["split_activitynet", "--video_dir", f"{tmp_path}/videos", "--output_dir", f"{tmp_path}/clips"]
    words += ["--min_seconds", "1.5", "--num_workers", "1"]
    assert main(words) == 1  # one is no film, and told
    assert "playlist" not in (tmp_path / "clips/skipped.jsonl").read_text()
    assert [entry["video"] for entry in lines(tmp_path / "clips/skipped.jsonl")] == ["not.mp4"]
    rows = lines(tmp_path / "clips/scenes.jsonl")
    assert [(row["clip"], row["start_sec"], row["end_sec"]) for row in rows] == [
        *(("film/0000.mp4", 0.0, 2.0), ("film/0001.mp4", 3.0, 6.0)),
    ]
    for row in rows:
        with open_video(tmp_path / "clips" / row["clip"]) as video:
            info = video.probe()
            assert info.num_frames == 20 * (row["end_sec"] - row["start_sec"])
            assert abs(info.duration - (row["end_sec"] - row["start_sec"])) < 0.01
            shown = video.frames_at([0.0, info.duration / 2, info.duration]).astype(int)
        with open_video(tmp_path / "videos/film.mp4") as video:
            filmed = video.frames_at([row["start_sec"] + 0.5, 2.5]).astype(int)
        assert np.abs(shown - filmed[0]).mean((1, 2, 3)).max() < 15 < np.abs(shown - filmed[1]).mean() - 15
    before = (tmp_path / "clips/film/0000.mp4").stat().st_mtime_ns
    assert main(words) == 1
    assert (tmp_path / "clips/film/0000.mp4").stat().st_mtime_ns == before


def test_a_video_on_which_the_decoder_hangs_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/film.mp4", np.zeros((20, 48, 64, 3), np.uint8), 20)
    monkeypatch.setattr(split_activitynet, "SCENE_READER", "evil_scenes:HangingScenes")
    monkeypatch.setattr(split_activitynet, "LEAST_SECONDS", 1.0)
    monkeypatch.setattr(split_activitynet, "SLOWNESS", 0.0)
    task = split_activitynet.SplitTask(f"{tmp_path}/videos", "film.mp4", f"{tmp_path}/clips", 0.0)
    started = time.monotonic()
    summary = task()
    assert time.monotonic() - started < 20 and summary["scenes"] == []
    assert summary["failed"] == f"{tmp_path}/videos/film.mp4: its decoder took longer than 1 s"


def test_the_example_script_calls_what_there_is(tmp_path):
    script = store.__file__.replace("store.py", "run_prepro.sh")
    shown = subprocess.run(
        ["bash", script, str(tmp_path), "3", "--rows_per_shard", "7"],
        env={**os.environ, "DRY_RUN": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    convert, change = (shlex.split(line) for line in shown)
    assert convert[:3] == ["python", "-m", "quicksviewer.preprocess.convert_sharegpt4video"]
    args = _parser(find("sharegpt4video")).parse_args(convert[3:])
    assert (args.num_workers, args.rows_per_shard, args.tsv_output) == (
        3,
        7,
        f"{tmp_path}/quicksviewer/store",
    )
    assert change[2] == "quicksviewer.preprocess.change_datasets" and "filter" in change
    subprocess.run(["shellcheck", script], check=True)
