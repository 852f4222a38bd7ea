import base64
import json
import multiprocessing
import os
import pickle

import numpy as np
import pytest

from quicksviewer.utils import stored_video
from quicksviewer.utils.array_file import CACHE_VARIABLE
from quicksviewer.utils.data_util import MediaError, MediaLimits, TSVReader, TSVWriter
from quicksviewer.utils.stores import StoredPath, open_store
from quicksviewer.utils.tsv import INDEX, rebuild_index

VIDEOS = {"plain.mp4": 3, "Straße/Zürich – 東京.mp4": 4, "emoji 🎬.mp4": 1, "last.mp4": 2}


def frames_of(name: str) -> np.ndarray:
    """Smooth pictures, which JPEG keeps nearly as they are: uint8 (N, 24, 32, 3)."""
    order = list(VIDEOS).index(name)
    shade = 40 * order + 12 * np.arange(VIDEOS[name])[:, None, None, None]
    return np.broadcast_to(shade + np.arange(32)[None, None, :, None], (VIDEOS[name], 24, 32, 3)).astype(
        np.uint8
    )


@pytest.fixture
def folder(tmp_path):
    with TSVWriter(tmp_path / "store") as writer:
        for name in VIDEOS:
            writer.append(name, frames_of(name))
    return tmp_path / "store"


def assert_near(frames, expected):
    assert frames.shape == expected.shape and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - expected).max() <= 4


def test_what_is_written_is_read(folder):
    with TSVReader(folder) as store:
        assert (len(store), store.names) == (len(VIDEOS), list(VIDEOS))
        for name in reversed(VIDEOS):
            assert_near(store.frames(name), frames_of(name))
            assert_near(store.frames(name, [VIDEOS[name] - 1, 0, 0]), frames_of(name)[[-1, 0, 0]])
        assert store.frames("last.mp4", []).shape == (0, 24, 32, 3)


def test_the_files_are_those_of_the_published_store(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "fname2idx.json",
        "imgs.last",
        "imgs.lineidx",
        "imgs.tsv",
    ]
    data = (folder / "imgs.tsv").read_bytes()
    offsets = [int(line) for line in (folder / "imgs.lineidx").read_text().splitlines()]
    assert int((folder / "imgs.last").read_text()) == len(data)
    rows = json.loads((folder / "fname2idx.json").read_bytes())
    for name, row in rows.items():
        assert data[offsets[row] :].startswith(name.encode() + b'\t["')
        assert len(json.loads(data[offsets[row] :].split(b"\n")[0].split(b"\t")[1])) == VIDEOS[name]


def test_jpeg_bytes_go_through_untouched(folder, tmp_path):
    row = (folder / "imgs.tsv").read_bytes().split(b"\n")[0]
    with TSVReader(folder) as store, TSVWriter(tmp_path / "copy") as copy:
        jpegs = [base64.b64decode(text) for text in json.loads(row.split(b"\t")[1])]
        copy.append("plain.mp4", jpegs)
        original = store.frames("plain.mp4")
    assert np.array_equal(TSVReader(tmp_path / "copy").frames("plain.mp4"), original)


def test_only_the_frames_asked_for_are_decoded(folder, monkeypatch):
    decoded = []
    original = stored_video.decoded
    monkeypatch.setattr(stored_video, "decoded", lambda *a: decoded.append(a[3]) or original(*a))
    TSVReader(folder).frames("plain.mp4", [2, 2])
    assert decoded == ["frame 2 of 'plain.mp4'"]


def test_a_row_is_a_video(folder):
    with TSVReader(folder) as store, store.as_video("plain.mp4") as video:
        info = video.probe()
        assert (info.duration, info.fps, info.num_frames, info.width, info.height) == (3.0, 1.0, 3, 32, 24)
        shown = video.frames_at([2.5, 0.0, 0.999, 1.0, 9.0, -1.0])
        assert np.array_equal(shown, store.frames("plain.mp4", [2, 0, 0, 1, 2, 0]))
        assert video.frames_at([]).shape == (0, 24, 32, 3)


def read_sum(job):
    store, name = job
    return int(store.frames(name).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_may_share_a_reader(folder, method):
    store = TSVReader(folder)
    jobs = [(store, name) for name in VIDEOS] * 3
    expected = [read_sum(job) for job in jobs]
    if method == "spawn":  # what a spawned worker gets, without the seconds that its start takes
        assert [read_sum(pickle.loads(pickle.dumps(job))) for job in jobs] == expected
    else:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(read_sum, jobs, chunksize=1) == expected


def test_the_index_is_kept_and_mapped(folder, tmp_path, monkeypatch):
    """Workers share it; it is read again when one of its files has changed."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    reads, read = [], TSVReader._read_names
    monkeypatch.setattr(TSVReader, "_read_names", lambda self, path: reads.append(path) or read(self, path))
    for when in (1e9, 2e8):
        for name in INDEX:
            os.utime(folder / name, (when, when))
        for _ in range(2):
            with TSVReader(folder) as store:
                assert store.names == list(VIDEOS) and "other" not in store
                assert not store._rows.flags.owndata and not store._offsets.flags.owndata
    assert len(reads) == 2


def test_a_store_is_open_once_whatever_the_limits(folder):
    small, large = MediaLimits(max_pixels=100), MediaLimits(max_pixels=10_000)
    one, other = open_store(folder, small), open_store(folder, large)
    path = StoredPath(folder, "plain.mp4")
    assert path.num_bytes() == one.num_bytes("plain.mp4") > 0 and path.open_frames(large).probe().width == 32
    assert one._file is other._file is open_store(folder)._file and one._offsets is other._offsets
    with pytest.raises(MediaError, match="the limit is 100"):
        path.open_frames(small)


def test_a_failed_writer_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), TSVWriter(tmp_path) as writer:
        writer.append("a", frames_of("plain.mp4"))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_not_overwritten(folder):
    with pytest.raises(FileExistsError, match=r"imgs\.tsv"):
        TSVWriter(folder)


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("plain\t1", [b"\xff\xd8\xff"], "tabs"),
        ("line\nbreak", [b"\xff\xd8\xff"], "tabs"),
        ("", [b"\xff\xd8\xff"], "tabs"),
        ("again", [b"\xff\xd8\xff"], "already"),
        ("none", [], "no frames"),
        ("png", [b"\x89PNG"], "must be a JPEG"),
        ("floats", [np.zeros((2, 2, 3))], "must be uint8"),
        ("grey", [np.zeros((2, 2), np.uint8)], "must be uint8"),
    ],
)
def test_what_the_writer_refuses(tmp_path, name, frames, message):
    with TSVWriter(tmp_path) as writer:
        writer.append("again", [np.zeros((2, 2, 3), np.uint8)])
        with pytest.raises(ValueError, match=message):
            writer.append(name, frames)
    assert TSVReader(tmp_path).names == ["again"]


def test_what_the_reader_refuses(folder):
    store = TSVReader(folder)
    with pytest.raises(KeyError, match="no video 'other'"):
        store.frames("other")
    with pytest.raises(IndexError, match="frames 0 to 2, not 3"):
        store.frames("plain.mp4", [3])
    with pytest.raises(IndexError, match="not -1"):
        store.frames("plain.mp4", [-1])
    with pytest.raises(MediaError, match="no such file"):
        TSVReader(folder / "none")


def test_offsets_in_characters_are_noticed_and_repaired(folder):
    lines = (folder / "imgs.tsv").read_bytes().decode().splitlines(keepends=True)
    starts = np.cumsum([0] + [len(line) for line in lines])
    (folder / "imgs.lineidx").write_text("".join(f"{start}\n" for start in starts[:-1]))
    store = TSVReader(folder)
    assert_near(store.frames("plain.mp4"), frames_of("plain.mp4"))
    with pytest.raises(MediaError, match="wrong offsets, rebuild_index"):
        store.frames("last.mp4")
    assert rebuild_index(folder) == len(VIDEOS)
    assert_near(TSVReader(folder).frames("last.mp4"), frames_of("last.mp4"))


def test_damage_is_noticed(folder):
    path = folder / "imgs.tsv"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(MediaError, match="offsets do not fit"):
        TSVReader(folder)
    path.write_bytes(data.replace(b'["/9j/', b'["!!!!', 1))
    with pytest.raises(MediaError, match="frame 0 of 'plain.mp4'"):
        TSVReader(folder).frames("plain.mp4")
    path.write_bytes(data.replace(b'"]', b'" ', 1))
    with pytest.raises(MediaError, match="damaged row 0"):
        TSVReader(folder).frames("plain.mp4")


def test_a_store_goes_through_byte_for_byte(folder, tmp_path):
    """All four files, written from what was read."""
    with TSVReader(folder) as store, TSVWriter(tmp_path / "copy") as copy:
        for name in store.names:
            copy.append(name, store.jpegs(name))
    for path in folder.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes(), path.name


WRONG_INDEX = {
    "fname2idx.json": [
        b"[" * 100_000,
        b"[1]",
        b'{"a": "b"}',
        b'{"a": true}',
        b'{"plain.mp4": 9}',
        b'{"a": -1}',
    ],
    "imgs.lineidx": [b"0\nx\n", b"0\n5\n3\n9\n", b"-5\n0\n1\n2\n", b"9" * 30, b""],
    "imgs.last": [b"", b"1e3", b"999999999"],
}
CASES = [(name, letters) for name, several in WRONG_INDEX.items() for letters in several]


@pytest.mark.parametrize(("name", "letters"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_a_wrong_index_is_refused(folder, name, letters):
    (folder / name).write_bytes(letters)
    with pytest.raises(MediaError):
        TSVReader(folder)


@pytest.mark.parametrize(
    "value", [b"{}", b"[1]", b"[null]", b"[[]]", b"[]", b'["\xc3\xa9"]', b"[" * 99], ids=str
)
def test_a_wrong_row_is_refused(tmp_path, value):
    (tmp_path / "imgs.tsv").write_bytes(b"a\t" + value + b"\n")
    assert rebuild_index(tmp_path) == 1
    with TSVReader(tmp_path) as store, pytest.raises(MediaError):
        store.frames("a")


def test_a_row_of_too_many_frames_is_refused_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "imgs.tsv").write_bytes(b"a\t[" + b'"/9j/AAAAAAAAAAAAAAAAAAAA", ' * 100_000 + b'""]\n')
    rebuild_index(tmp_path)
    with TSVReader(tmp_path) as store:
        largest, read = [], store._read
        monkeypatch.setattr(
            store, "_read", lambda start, end: largest.append(end - start) or read(start, end)
        )
        with pytest.raises(MediaError, match="100001 pictures"):
            store.as_video("a")
        assert max(largest) <= 1 << 20
    small = MediaLimits(max_memory_bytes=1 << 20)
    with TSVReader(tmp_path, small) as store, pytest.raises(MediaError, match="in memory"):
        store.frames("a")
