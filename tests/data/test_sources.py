"""Sources: the same rows and samples, whatever they are stored in; shared, bounded, and true to the file."""

import base64
import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import fresh, videos

from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.data.lengths import size_table
from quicksviewer.data.mixture import DatasetSpec, Mixture, parse_mixture
from quicksviewer.data.packing import Caps
from quicksviewer.data.preprocess import SampleError
from quicksviewer.data.sources import CHAT, FRAMES, SOURCES, JsonlIndex, jsonl, open_source, sniff
from quicksviewer.data.sources.rows import RowLimits, parse_row
from quicksviewer.train.stages import check_paths
from quicksviewer.utils.array_file import CACHE_VARIABLE
from quicksviewer.utils.data_util import FramePlan, TSVWriter, load_image, open_video
from quicksviewer.utils.frame_store import FrameStoreWriter
from quicksviewer.utils.media_gate import RootedPath
from quicksviewer.utils.stores import StoredPath

NAMES = ("v0.mp4", "v1.mp4")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def rows() -> list[dict]:
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
    return [
        {"uid": f"u{i}", "data_type": "conversations", "video": name, "conversations": turns}
        for i, name in enumerate(NAMES)
    ]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def stores(tiny, tmp_path_factory):
    """The same two videos and rows as files, in both stores of frames, and in archives: name -> folder."""
    root = tmp_path_factory.mktemp("sources")
    plain, tsv, frames, tars = (root / name for name in ("plain", "tsv", "frames", "tars"))
    for folder in (plain, tsv, frames, tars):
        folder.mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows())
        (folder / CHAT).write_text(lines) if folder != tars else None
    with TSVWriter(tsv) as one, FrameStoreWriter(frames / FRAMES) as two:
        for name, path in zip(NAMES, videos(tiny), strict=False):
            shutil.copy(path, plain / name)
            with open_video(path) as video:
                seconds = round(video.probe().duration)
                shown = video.frames_at(np.arange(seconds) + 0.5)
            one.append(name, shown)
            two.append(name, shown, fps=1.0)
    with tarfile.open(tars / "0.tar", "w") as first, tarfile.open(tars / "1.tar", "w") as second:
        for tar, row in zip((first, second), rows(), strict=True):
            key = row["video"].removesuffix(".mp4")
            add(tar, f"{key}.mp4", (plain / row["video"]).read_bytes())
            add(tar, f"{key}.json", json.dumps(row).encode())
    return {folder.name: folder for folder in (plain, tsv, frames, tars)}


def mixture_of(folder: Path) -> Mixture:
    if folder.name == "plain":
        return Mixture([DatasetSpec(str(folder / CHAT), media_root=str(folder))])
    return Mixture([DatasetSpec(str(folder))])


@pytest.mark.parametrize("kind", ["tsv", "frames", "tars"])
def test_a_store_gives_the_samples_of_the_files(stores, tiny, kind):
    processor = fresh(tiny).processor
    expected, found = (
        LazySupervisedDataset(mixture_of(stores[name]), processor, 10_000) for name in ("plain", kind)
    )
    assert len(found) == len(expected) == 2
    for index in range(2):
        one, other = expected.load(index), found.load(index)
        assert other["input_ids"] == one["input_ids"] and other["labels"] == one["labels"]
        assert other["frame_times"].tolist() == one["frame_times"].tolist()
        off = (other["pixel_values"].float() - one["pixel_values"].float()).abs().mean()
        assert off == 0 if kind == "tars" else off < 8
    table, there = (
        size_table(mixture_of(stores[name]), processor, Caps(tokens=10_000)) for name in ("plain", kind)
    )
    assert np.array_equal(table.tokens, there.tokens) and not there.unusable


@pytest.mark.parametrize("kind", ["plain", "tsv", "frames", "tars"])
def test_a_plan_is_replayed_over_the_store(stores, tiny, kind):
    """Also one that a decoder made of the file, and one of the store over the file."""
    processor = fresh(tiny).processor
    path = mixture_of(stores[kind])[0][0]["video"]
    first = processor.load_video(path, start=1.0)
    again = processor.load_video(path, plan=FramePlan.from_json(first.plan.to_json()))
    assert torch.equal(first.pixels, again.pixels) and first.times.tolist() == again.times.tolist()
    assert first.plan.decoder == {"tsv": "tsv", "frames": "frames"}.get(kind, "av")
    other = processor.load_video(str(stores["plain"] / NAMES[0]), plan=first.plan)
    assert other.times.tolist() == first.times.tolist()
    with pytest.raises(ValueError, match="video decoder"):
        processor.load_video(path, plan=replace(first.plan, decoder="av2"))


@pytest.mark.parametrize("kind", ["plain", "tsv", "frames", "tars"])
def test_sources_travel_and_are_told_apart(stores, kind):
    mixture = mixture_of(stores[kind])
    assert sniff(str(stores[kind])) == {"plain": "jsonl", "tars": "tar"}.get(kind, kind)
    expected = [mixture[index] for index in range(2)]
    copy = pickle.loads(pickle.dumps(mixture))
    assert [copy[index] for index in range(2)] == expected and copy.fingerprint == mixture.fingerprint
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(mixture.__getitem__, range(2)) == expected
    assert [mixture.where(index) for index in range(2)] == [where for _, where in expected]
    for outside in (-1, 2):
        with pytest.raises(IndexError):
            mixture.parts[0].source[outside]


@pytest.mark.parametrize("kind", ["plain", "tsv", "frames", "tars"])
def test_a_run_may_read_any_kind(stores, kind):
    """The check before a run knows that rows may lie in a folder, an archive, or elsewhere."""
    model = SimpleNamespace(model_name_or_path=None, vision_tower=None)
    rows = stores[kind] / CHAT if kind == "plain" else stores[kind]
    for path, is_there in ((rows, True), ("s3://bucket/x.tar", True), (f"{rows}x", False), ("/tmp", False)):
        data = SimpleNamespace(data_path=str(path), data_registry=None)
        with pytest.raises(ValueError, match="--model_name_or_path") as caught:
            check_paths("any", "stage1", model, data, "out", is_fresh=lambda *_: False)
        assert ("rows of a data set" in str(caught.value)) != is_there


def test_any_store_can_be_the_root_of_media(stores):
    for name, at in (("tsv", ""), ("frames", FRAMES)):
        root = str(stores[name] / at)
        spec = DatasetSpec(str(stores["plain"] / CHAT), media_root=root)
        path = Mixture([spec])[1][0]["video"]
        assert isinstance(path, StoredPath) and path == f"{root.rstrip('/')}::v1.mp4"
        with open_video(path) as video:
            assert video.probe().codec in ("mjpeg", "jpeg")
        with pytest.raises(Exception, match="no such medium"):
            open_video(StoredPath(root, "../v1.mp4"))


@pytest.mark.parametrize("kind", ["plain", "tsv", "frames", "tars"])
def test_a_picture_in_its_row_is_read_wherever_other_media_lie(stores, tmp_path, kind):
    picture = Image.fromarray(np.full((5, 4, 3), 77, np.uint8))
    picture.save(tmp_path / "own.png")
    url = "data:image/png;base64," + base64.b64encode((tmp_path / "own.png").read_bytes()).decode()
    row = {**rows()[0], "image": [url, "beside.png"]}
    if kind == "tars":
        with tarfile.open(tmp_path / "own.tar", "w") as tar:
            add(tar, "own.json", json.dumps(row).encode())
        mixture = Mixture([DatasetSpec(str(tmp_path / "own.tar"))])
    else:
        (tmp_path / CHAT).write_text(json.dumps(row) + "\n")
        root = stores[kind] / FRAMES if kind == "frames" else stores[kind]
        mixture = Mixture([DatasetSpec(str(tmp_path / CHAT), media_root=str(root))])
    inside, beside = mixture[0][0]["image"]
    assert load_image(inside).tobytes() == picture.tobytes()
    assert isinstance(beside, RootedPath if kind == "plain" else StoredPath)


def test_a_mixture_can_say_the_kind_and_the_licence(stores, tmp_path):
    (tmp_path / "registry.yaml").write_text(f"a: {{path: {stores['tsv']}, kind: tsv, licence: MIT}}")
    (tmp_path / "mixture.yaml").write_text(
        "datasets: [{name: a}, {name: a, licence: CC0-1.0, slice: [0, 1]}]"
    )
    specs = parse_mixture(tmp_path / "mixture.yaml", tmp_path / "registry.yaml")
    assert [(spec.kind, spec.licence) for spec in specs] == [("tsv", "MIT"), ("tsv", "CC0-1.0")]
    assert parse_mixture("a*2", tmp_path / "registry.yaml")[0] == replace(specs[0], repeat=2.0)
    assert len(Mixture(specs)) == 3
    with pytest.raises(ValueError, match="Did you mean 'tsv'"):
        DatasetSpec("x", kind="tsw")
    with pytest.raises(ValueError, match="has its media inside"):
        open_source(str(stores["tsv"]), media_root="x")


# Archives


def test_archives_elsewhere_are_rows_too(stores):
    system = fsspec.filesystem("memory")
    for name in ("0.tar", "1.tar"):
        system.pipe(f"/data/{name}", (stores["tars"] / name).read_bytes())
    far, near = open_source("memory://data"), open_source(str(stores["tars"]))
    assert far.fingerprint == near.fingerprint and len(far) == 2
    assert far[1][0]["video"] == "memory:///data/1.tar::v1.mp4" and far[1][1] == "memory:///data/1.tar:v1"
    with open_video(far[1][0]["video"]) as one, open_video(near[1][0]["video"]) as other:
        assert np.array_equal(one.frames_at([0.5]), other.frames_at([0.5]))


def test_a_row_without_media_has_those_of_its_sample(tmp_path):
    members = {
        "d/a.jpg": b"1",
        "d/a.json": b'{"caption": "x"}',
        "d/a.depth.png": b"2",
        "d/b.jpg": b"3",
        "d/b.json": b"[]",
        "d/c.txt": b"",
    }
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    source = open_source(str(tmp_path / "x.tar"))
    path = f"{tmp_path}/x.tar"
    assert len(source) == 2
    assert source[0] == (
        {"uid": "d/a", "caption": "x", "image": [f"{path}::d/a.jpg", f"{path}::d/a.depth.png"]},
        f"{path}:d/a",
    )
    with pytest.raises(SampleError, match="must be an object") as caught:
        source[1]
    assert caught.value.where == f"{path}:d/b"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no archive"):
        open_source(str(tmp_path / "empty"), kind="tar")


# JSONL


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A file that counts as large and as old, with blank lines; blocks of the scan end anywhere in it."""
    monkeypatch.setattr(jsonl, "MIN_KEPT_BYTES", 0)
    monkeypatch.setattr(jsonl, "BLOCK", 7)
    lines = [
        json.dumps({"uid": f"é東{i}"}, ensure_ascii=False) if i % 5 else " \t" * (i % 3) for i in range(60)
    ]
    path = tmp_path / "big.jsonl"
    path.write_text("\r\n".join(lines), encoding="utf-8")
    os.utime(path, (1e9, 1e9))
    return path


def expected_rows(path) -> list:
    lines = path.read_bytes().split(b"\n")
    return [(json.loads(line), f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def all_rows(index) -> list:
    return [index[i] for i in range(len(index))]


def test_offsets_are_kept_mapped_and_those_of_the_file(big, monkeypatch):
    first = JsonlIndex(big)
    assert all_rows(first) == expected_rows(big)
    monkeypatch.setattr(jsonl, "scan", lambda path: pytest.fail("scanned again"))
    again = JsonlIndex(big)
    assert all_rows(again) == expected_rows(big) and again.fingerprint == first.fingerprint
    assert not again.offsets.flags.writeable and not again.offsets.flags.owndata
    assert len(pickle.dumps(again)) < 400, "offsets must not travel"


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64, 10_000])
def test_blocks_may_end_anywhere(big, monkeypatch, block):
    monkeypatch.setattr(jsonl, "BLOCK", block)
    about, arrays = jsonl.scan(str(big))
    assert arrays["offsets"].tolist() == jsonl.scan(str(big))[1]["offsets"].tolist()
    assert about["bytes"] == big.stat().st_size and len(arrays["offsets"]) == len(expected_rows(big)) + 1


def test_a_changed_file_is_scanned_again_and_a_damaged_index_made_anew(big, tmp_path):
    before = JsonlIndex(big)
    (kept,) = [path for path in (tmp_path / "cache").rglob("*big.jsonl") if path.is_file()]
    kept.write_bytes(kept.read_bytes()[:-3] + b"xyz")
    assert all_rows(JsonlIndex(big)) == expected_rows(big)
    data = big.read_bytes()
    big.write_bytes(data.replace("東4".encode(), "東9".encode()))
    after = JsonlIndex(big)
    assert all_rows(after) == expected_rows(big) and after.fingerprint != before.fingerprint
    with pytest.raises(OSError, match="has changed"):
        pickle.loads(pickle.dumps(before))
    big.write_bytes(b"\n" + data[:-1])
    with pytest.raises(OSError, match="no longer the start of a line"):
        before[3]


def test_a_cache_that_cannot_be_written_costs_only_time(big, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    assert all_rows(JsonlIndex(big)) == expected_rows(big)


# Limits of a row (Sec4)

DEEP = b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"
LIMITED = {
    "bytes": (b'{"a": "' + b"x" * 2000 + b'"}', RowLimits(max_bytes=1000), "the limit of a row is 1000"),
    "depth": (DEEP, RowLimits(), "41 levels deep, the most is 32"),
    "keys": (
        json.dumps([{"a": 1, "b": 2}] * 4).join(['{"x": ', "}"]).encode(),
        RowLimits(max_keys=7),
        "more than 7 keys",
    ),
    "integer": (b'{"a": 9223372036854775808}', RowLimits(), "the integer 9223372036854775808 is beyond"),
    "negative": (b'{"a": -9223372036854775808}', RowLimits(), "is beyond"),
    "long integer": (b'{"a": ' + b"9" * 100_000 + b"}", RowLimits(), "is beyond"),
    "long float": (b'{"a": 1e999}', RowLimits(), "1e999 is no number"),
    "twice": (b'{"a": {"b": 1, "b": 1}}', RowLimits(), "key 'b' is set twice"),
}


@pytest.mark.parametrize("case", LIMITED)
def test_a_row_beyond_a_limit_is_refused(tmp_path, case):
    line, limits, reason = LIMITED[case]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"uid": "a"}\n' + line + b'\n{"uid": "b"}\n')
    index = JsonlIndex(path, limits)
    assert [index[0][0], index[2][0]] == [{"uid": "a"}, {"uid": "b"}]
    with pytest.raises(SampleError, match=reason) as caught:
        index[1]
    assert caught.value.where == f"{path}:2" and len(str(caught.value)) < 400


def test_what_is_within_the_limits_is_read():
    row = {"text": '[{"' * 50 + "\\", "n": [2**63 - 1, -(2**63) + 1, 1e308], "list": [{}] * 100}
    assert parse_row(json.dumps(row).encode(), "x") == row
    exact = b'{"a": ' + b"[" * 31 + b"]" * 31 + b"}"
    assert parse_row(exact, "x")["a"]


def test_every_kind_is_tested(stores):
    assert {sniff(str(folder)) for folder in stores.values()} == set(SOURCES)
