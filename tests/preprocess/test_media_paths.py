"""Paths and addresses in rows: nothing outside the media root is touched, nothing is ever fetched."""

import json
import os
import socket

import pytest
from public_data import document, turns, write_json, write_parquet
from public_images import OBELICS

from quicksviewer.data.preprocess import modality, parse_sample
from quicksviewer.preprocess.convert import main
from quicksviewer.preprocess.converter import cache_name
from quicksviewer.preprocess.files import Place
from quicksviewer.preprocess.gif import gif_to_mp4
from quicksviewer.preprocess.utils import inside, shrink, split_list
from quicksviewer.utils.data_util import MediaError, MediaLimits, open_video

OUTSIDE = [
    "../secret.jpg",
    "a/../../secret.jpg",
    "/etc/hostname",
    "TMP/secret.jpg",
    "https://example.org/a.jpg",
    "file:///etc/hostname",
    "concat:a.jpg|../secret.jpg",
    "a\0.jpg",
    "",
]
"""Paths that a row may not name; TMP is the folder above the media root."""


def ledger(out, name):
    return [json.loads(line) for line in (out / f"{name}.skipped.jsonl").open()]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_rows_cannot_leave_the_media_root(tmp_path, stock, no_network):
    root = tmp_path / "root"
    root.mkdir()
    for path in (tmp_path / "secret.jpg", root / "good.jpg"):
        path.write_bytes(stock.jpeg)
    os.symlink(tmp_path / "secret.jpg", root / "link.jpg")
    os.symlink(tmp_path, root / "linked")
    paths = [path.replace("TMP", str(tmp_path)) for path in OUTSIDE] + ["link.jpg", "linked/secret.jpg"]
    talk = turns("<image>?", "yes")
    names = [*paths, "good.jpg", f"{root}/good.jpg", "./good.jpg"]
    write_json(tmp_path / "chat.json", [{"id": 1, "image": name, "conversations": talk} for name in names])
    words = ["--input", f"{tmp_path}/chat.json", "--media_root", str(root), "--output", f"{tmp_path}/out"]
    assert main(["llavapretrain", *words, "--max_skipped", "0.9", "--num_workers", "1"]) == 0
    entries = ledger(tmp_path / "out", "llavapretrain")
    assert [entry["row"] for entry in entries] == list(range(len(paths)))
    reasons = [entry["reason"] for entry in entries]
    assert reasons == ["medium outside"] * len(OUTSIDE) + ["medium refused"] * 2
    assert all("leads out of its media root" in entry["detail"] for entry in entries[-2:])
    samples = [json.loads(line) for line in (tmp_path / "out/llavapretrain.jsonl").open()]
    assert [sample["image"] for sample in samples] == ["good.jpg"] * 3


@pytest.mark.parametrize("path", OUTSIDE)
def test_inside_says_what_is_wrong(path, tmp_path):
    with pytest.raises(ValueError, match=r"no path|address|outside|\.\."):
        inside(Place(str(tmp_path / "root")), path.replace("TMP", str(tmp_path)))


def test_addresses_are_looked_up_in_the_cache_and_never_fetched(tmp_path, stock, no_network):
    rows = [document([stock.jpeg, "one"]), document([stock.jpeg, "two"])]
    rows[0]["image_bytes"] = rows[1]["image_bytes"] = None
    rows[1]["images"][0] = "https://example.org/known.jpg"
    write_parquet(tmp_path / "train.parquet", rows, OBELICS)
    cached = tmp_path / "cache" / cache_name("https://example.org/known.jpg")
    cached.parent.mkdir(parents=True)
    cached.write_bytes(stock.png)
    words = ["obelics", "--input", f"{tmp_path}/train.parquet", "--output", f"{tmp_path}/out"]
    assert main([*words, "--image_cache", f"{tmp_path}/cache", "--num_workers", "1"]) == 0
    (entry,) = ledger(tmp_path / "out", "obelics")
    assert (entry["row"], entry["reason"]) == (0, "medium not at hand")
    assert "https://example.org/a/0.jpg; addresses are not fetched" in entry["detail"]
    (sample,) = map(json.loads, (tmp_path / "out/obelics.jsonl").open())
    assert (tmp_path / "out" / sample["image"][0]).read_bytes() == stock.png


def test_the_modality_is_told_by_the_key_and_not_by_the_path(tmp_path, stock):
    """The published reader files this path as an image."""
    stock.clips(tmp_path / "root", "vid_train_datasets/images/a.mp4")
    pair = [{"i": "What?", "q": "", "a": "A lamp."}]
    write_json(tmp_path / "train.json", [{"video": "vid_train_datasets/images/a.mp4", "QA": pair}])
    words = ["webvid400k", "--input", f"{tmp_path}/train.json", "--media_root", f"{tmp_path}/root"]
    assert main([*words, "--output", f"{tmp_path}/out", "--num_workers", "1"]) == 0
    (sample,) = map(json.loads, (tmp_path / "out/webvid400k.jsonl").open())
    assert modality(parse_sample(sample, "out:1")) == "video"


def test_files_of_one_name_are_not_guessed_between(tmp_path, stock):
    stock.clips(tmp_path / "root", "a/1.mp4", "b/1.mp4")
    write_json(tmp_path / "train.json", [{"video": "x/1.mp4", "QA": [{"i": "I", "q": "Q", "a": "A"}]}])
    words = ["videochat2it_nextqa", "--input", f"{tmp_path}/train.json", "--media_root", f"{tmp_path}/root"]
    assert main([*words, "--output", f"{tmp_path}/out", "--num_workers", "1"]) == 1
    (entry,) = ledger(tmp_path / "out", "videochat2it_nextqa")
    assert (entry["reason"], entry["detail"]) == ("medium ambiguous", "'1.mp4' could be a/1.mp4 or b/1.mp4")


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_gif_becomes_a_video_of_the_same_pictures_at_the_same_times(stock, isolation):
    with open_video(gif_to_mp4(stock.gif, "a.gif", MediaLimits(isolation=isolation))) as video:
        info = video.probe()
        shades = video.frames_at([0.05, 0.15, 0.25, 0.35, 0.55]).mean((1, 2, 3))
    assert (info.width, info.height, info.num_frames) == (30, 24, 3)
    assert abs(info.duration - 0.6) < 0.02
    assert [round(shade / 10) for shade in shades] == [3, 12, 12, 22, 22]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF89a\x10\x00\x10\x00", "damaged GIF")],
)
def test_what_is_no_gif_is_refused(data, message):
    with pytest.raises(MediaError, match=message):
        gif_to_mp4(data, "a.gif", MediaLimits())


def test_a_gif_of_too_many_pixels_is_refused(stock):
    with pytest.raises(MediaError, match="31x25"):
        gif_to_mp4(stock.gif, "a.gif", MediaLimits(max_pixels=100))
    with pytest.raises(MediaError, match="more than 1 pictures"):
        gif_to_mp4(stock.gif, "a.gif", MediaLimits(max_decoded_bytes=30 * 24 * 3))


def test_lists_are_split_into_neighbours():
    assert split_list(list(range(7)), 3) == [[0, 1], [2, 3], [4, 5, 6]]
    assert [len(run) for run in split_list([1], 3)] == [0, 0, 1]
    with pytest.raises(ValueError, match="at least 1"):
        split_list([1], 0)


def test_frames_shrink_and_never_grow():
    import numpy as np

    frame = np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3)
    assert shrink(frame, 10).shape == (10, 20, 3)
    assert shrink(frame, 0) is frame and shrink(frame, 20) is frame and shrink(frame, 99) is frame


def test_scripts_of_several_converters_choose_by_their_first_word(tmp_path, stock, monkeypatch, capsys):
    from quicksviewer.preprocess import convert_videochat2it, convert_webvid400k
    from quicksviewer.preprocess.convert import script

    stock.clips(tmp_path / "root", "1.mp4")
    write_json(tmp_path / "train.json", [{"video": "1.mp4", "QA": [{"i": "I", "q": "Q", "a": "A"}]}])
    words = ["--input", f"{tmp_path}/train.json", "--media_root", f"{tmp_path}/root", "--num_workers", "1"]
    monkeypatch.setattr("sys.argv", ["-m", "textvr", *words, "--output", f"{tmp_path}/a"])
    assert script(*convert_videochat2it.CONVERTERS) == 0
    assert (tmp_path / "a/videochat2it_textvr.jsonl").exists()
    monkeypatch.setattr("sys.argv", ["-m", *words, "--output", f"{tmp_path}/b"])
    assert script(*convert_videochat2it.CONVERTERS) == 2
    assert "usage: {textvr,youcook2," in capsys.readouterr().err
    assert script(convert_webvid400k.CONVERTER, convert_webvid400k.CSV) == 0
    assert (tmp_path / "b/webvid400k.jsonl").exists()
