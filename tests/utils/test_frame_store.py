"""The frame store: what is written is read, nothing else is touched, and no damage goes unseen."""

import io
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from quicksviewer.utils.data_util import MediaError, MediaLimits, TSVReader, TSVWriter, plan_frames
from quicksviewer.utils.frame_store import ENCODED, MAGIC, FrameStore, FrameStoreWriter

VIDEOS = {"plain.mp4": 3, "Straße/Zürich – 東京.mp4": 4, "emoji 🎬.mp4": 1, "last.mp4": 6}
FORMATS = (*ENCODED, "raw")


def frames_of(name: str) -> np.ndarray:
    """Smooth pictures, which encoders keep nearly as they are: uint8 (N, 24, 32, 3)."""
    shade = 40 * list(VIDEOS).index(name) + 12 * np.arange(VIDEOS[name])[:, None, None, None]
    shape = (VIDEOS[name], 24, 32, 3)
    return np.broadcast_to(shade + np.arange(32)[None, None, :, None], shape).astype(np.uint8)


def write(path, format="jpeg"):
    with FrameStoreWriter(path, format) as store:
        for name in VIDEOS:
            store.append(name, frames_of(name), fps=2.0)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "clips.qvf")


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read(tmp_path, format):
    with FrameStore(write(tmp_path / "clips.qvf", format)) as store:
        assert (len(store), [store.names[row] for row in range(len(store))]) == (4, list(VIDEOS))
        for name in reversed(VIDEOS):
            indices = [VIDEOS[name] - 1, 0, 0]
            for found, expected in (
                (store.frames(name), frames_of(name)),
                (store.frames(name, indices), frames_of(name)[indices]),
            ):
                assert found.shape == expected.shape and found.dtype == np.uint8
                assert np.abs(found.astype(int) - expected).max() <= (0 if format == "raw" else 6)
        assert store.frames("last.mp4", []).shape == (0, 24, 32, 3)
        assert "last.mp4" in store and "other" not in store


def test_a_store_is_a_video_sampled_as_its_file_would_be(path):
    with FrameStore(path) as store, store.as_video("last.mp4") as video:
        info = video.probe()
        assert (info.duration, info.fps, info.num_frames, info.width, info.height) == (3.0, 2.0, 6, 32, 24)
        every = store.frames("last.mp4")
        assert np.array_equal(video.frames_at(plan_frames(info, fps=2.0, max_frames=9).times), every)
        assert np.array_equal(video.frames_at(plan_frames(info, fps=9.0, max_frames=3).times), every[1::2])
        assert np.array_equal(video.frames_at([9.0, 0.0, 0.5, 0.49]), every[[5, 0, 1, 0]])
        out = np.zeros((1, 24, 32, 3), np.uint8)
        assert video.frames_at([1.0], out) is out and np.array_equal(out[0], every[2])


def test_encoded_frames_go_through_untouched_also_from_a_tsv_store(tmp_path):
    with TSVWriter(tmp_path / "tsv") as tsv:
        tsv.append("a", frames_of("last.mp4"))
    with TSVReader(tmp_path / "tsv") as tsv, FrameStoreWriter(tmp_path / "clips.qvf") as store:
        jpegs = tsv.jpegs("a")
        store.append("a", jpegs, fps=1.0)
        pixels = tsv.frames("a")
    with FrameStore(tmp_path / "clips.qvf") as store:
        assert [store.encoded("a", index) for index in range(6)] == jpegs
        assert np.array_equal(store.frames("a"), pixels) and store.num_bytes("a") == sum(map(len, jpegs))


def test_only_the_bytes_of_sampled_frames_are_read(path, monkeypatch):
    store, read, pread = FrameStore(path), [], os.pread
    sizes = [len(store.encoded("last.mp4", index)) for index in (4, 1)]
    monkeypatch.setattr(os, "pread", lambda fd, size, place: read.append(size) or pread(fd, size, place))
    store.frames("last.mp4", [4, 1, 4])
    assert read == sizes


def read_sum(job):
    store, name = job
    return int(store.frames(name).sum())


def test_workers_may_share_a_reader(path):
    store = FrameStore(path)
    jobs = [(store, name) for name in VIDEOS] * 3
    expected = [read_sum(job) for job in jobs]
    assert [read_sum(pickle.loads(pickle.dumps(job))) for job in jobs] == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_sum, jobs, chunksize=1) == expected


def test_every_changed_byte_of_the_index_and_of_a_frame_is_noticed(path):
    """Frames are read so that each has its CRC told; padding alone may change unseen."""
    data = bytearray(path.read_bytes())
    everything = [(name, index) for name in VIDEOS for index in range(VIDEOS[name])]
    expected = [FrameStore(path).encoded(*one) for one in everything]
    unseen = 0
    for place in range(0, len(data), 19):
        data[place] ^= 0x41
        path.write_bytes(data)
        try:
            with FrameStore(path) as store:
                assert [store.encoded(*one) for one in everything] == expected
            unseen += 1
        except MediaError as error:
            assert error.path == str(path)
        data[place] ^= 0x41
    assert unseen < 0.1 * len(data) / 19


@pytest.mark.parametrize("kept", [0, 4, 8, 9, 0.3, 0.9, -1])
def test_a_cut_store_is_refused(path, kept):
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(MediaError, match=r"is no frame store|its end is missing"):
        FrameStore(path)


def test_a_failed_writer_leaves_nothing_and_a_store_is_not_overwritten(tmp_path, path):
    with pytest.raises(RuntimeError, match="stop"), FrameStoreWriter(tmp_path / "new.qvf") as store:
        store.append("a", frames_of("plain.mp4"), fps=1.0)
        raise RuntimeError("stop")
    assert [one.name for one in tmp_path.iterdir()] == ["clips.qvf"]
    with pytest.raises(FileExistsError, match="written once"):
        FrameStoreWriter(path)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


WRONG = [
    ("jpeg", "again", frames_of("plain.mp4"), 1.0, "already"),
    ("jpeg", "", frames_of("plain.mp4"), 1.0, "needs a name"),
    ("jpeg", "none", [], 1.0, "no sizes"),
    ("jpeg", "png", [png()], 1.0, "must be JPEG"),
    ("jpeg", "cut", [b"\xff\xd8\xff\xe0"], 1.0, "must be JPEG"),
    ("jpeg", "grey", [np.zeros((2, 2), np.uint8)], 1.0, "must be uint8"),
    ("jpeg", "floats", [np.zeros((2, 2, 3))], 1.0, "must be uint8"),
    ("jpeg", "sizes", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)], 1.0, "sizes"),
    ("jpeg", "rate", frames_of("plain.mp4"), 0.0, "must be positive"),
    ("raw", "bytes", [b"\0" * 12], 1.0, "given as an array"),
]


@pytest.mark.parametrize(("format", "name", "frames", "fps", "reason"), WRONG, ids=[row[1] for row in WRONG])
def test_what_the_writer_refuses(tmp_path, format, name, frames, fps, reason):
    with FrameStoreWriter(tmp_path / "clips.qvf", format) as store:
        store.append("again", frames_of("plain.mp4"), fps=1.0)
        with pytest.raises(ValueError, match=reason):
            store.append(name, frames, fps)
    assert len(FrameStore(tmp_path / "clips.qvf")) == 1


def test_what_the_reader_refuses(path, tmp_path):
    store = FrameStore(path)
    with pytest.raises(KeyError, match="no video 'other'"):
        store.frames("other")
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"frames 0 to 2, not {index}"):
            store.frames("plain.mp4", [index])
    with pytest.raises(MediaError, match="no such file"):
        FrameStore(tmp_path / "none")
    for limits, reason in (
        (MediaLimits(max_pixels=700), "32x24"),
        (MediaLimits(max_decoded_bytes=5000), "the limit is 5000"),
    ):
        with pytest.raises(MediaError, match=reason):
            FrameStore(path, limits).frames("last.mp4")
    (tmp_path / "other").write_bytes(MAGIC + b"\0" * 100)
    with pytest.raises(MediaError, match="its end is missing"):
        FrameStore(tmp_path / "other")


def test_a_child_decodes_the_same_and_tells_the_same(path):
    """With isolation all frames of a call go to one child; a damaged one is named as it is without."""
    here, there = FrameStore(path), FrameStore(path, MediaLimits(isolation="process"))
    for name in VIDEOS:
        indices = [VIDEOS[name] - 1, 0, 0]
        assert np.array_equal(there.frames(name, indices), here.frames(name, indices))
    whole, other = (here.encoded("last.mp4", index) for index in (0, 1))
    head = other.index(b"\xff\xda") + 14  # a JPEG up to its pixels
    with FrameStoreWriter(path.with_name("bad.qvf")) as store:
        store.append("a", [whole, other[: head + 1]], fps=1.0)
    told = []
    for limits in (MediaLimits(), MediaLimits(isolation="process")):
        with pytest.raises(MediaError) as caught:
            FrameStore(path.with_name("bad.qvf"), limits).frames("a")
        told.append(str(caught.value).partition(" (")[0])
    assert told[0] == told[1] and told[0].startswith(
        f"{path.with_name('bad.qvf')}: frame 1 of 'a': damaged JPEG"
    )
