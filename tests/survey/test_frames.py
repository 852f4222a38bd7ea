"""The command that writes a frame store: what training reads of the store is what it reads of the videos."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL
import pytest
from tiny_world import videos

from quicksviewer.data.mixture import DatasetSpec, Mixture
from quicksviewer.survey import frames
from quicksviewer.survey.frames import main
from quicksviewer.utils.data_util import FramePlan, TSVReader, TSVWriter, open_video, read_video
from quicksviewer.utils.frame_store import FrameStore, FrameStoreWriter
from quicksviewer.utils.mm_utils import resize_frames
from quicksviewer.utils.stores import StoredPath

NAMES = ("d/v0.mp4", "v1.mp4")


@pytest.fixture
def world(tiny, tmp_path):
    """Rows of two videos, one of them named twice, and of one that is not there."""
    rows = [
        {"uid": "u", "data_type": "caption", "caption": "x", "video": name}
        for name in (*NAMES, NAMES[0], "none.mp4")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "media" / "d").mkdir(parents=True)
    for name, path in zip(NAMES, videos(tiny), strict=False):
        shutil.copy(path, tmp_path / "media" / name)
    return tmp_path


def run(world: Path, *flags, root="media") -> int:
    words = ["rows.jsonl", "--media_root", root, "--output", "clips.qvf", "--workers", "0"]
    places = {"rows.jsonl", root, "clips.qvf"}
    return main(
        [str(world / word) if word in places else word for word in words] + [str(flag) for flag in flags]
    )


@pytest.mark.parametrize("format", ["raw", "jpeg", "webp"])
def test_the_store_shows_what_the_videos_show(world, format, capsys):
    assert run(world, "--fps", 2, "--size", 32, "--format", format) == 1
    assert "none.mp4: no such file" in capsys.readouterr().err and not (world / "clips.qvf.parts").exists()
    spec = DatasetSpec(str(world / "rows.jsonl"), media_root=str(world / "clips.qvf"))
    mixture = Mixture([spec])
    for index, name in enumerate(NAMES):
        expected, plan = read_video(world / "media" / name, fps=2.0, max_frames=100)
        with open_video(mixture[index][0]["video"]) as video:
            found, info = video.frames_at(plan.times), video.probe()
        expected = resize_frames(expected, 32).permute(0, 2, 3, 1).numpy()
        off = np.abs(found.astype(int) - expected).mean()
        assert info.duration == pytest.approx(plan.end) and (off == 0 if format == "raw" else off < 8)
    assert len(FrameStore(world / "clips.qvf")) == 2


def test_frames_of_a_tsv_store_keep_their_bytes(world):
    with TSVWriter(world / "tsv") as store:
        for name in NAMES:
            store.append(name, read_video(world / "media" / name, 1.0, 100)[0])
    assert run(world, root="tsv") == 1
    with TSVReader(world / "tsv") as one, FrameStore(world / "clips.qvf") as other:
        for name in NAMES:
            assert one.jpegs(name) == [other.encoded(name, index) for index in range(len(one.jpegs(name)))]


def test_a_video_of_too_many_frames_is_left_out(world, monkeypatch, capsys):
    """The store has one rate: frames that are spread thinner would stand at wrong times."""
    monkeypatch.setattr(frames, "MAX_FRAMES", 3)
    assert run(world, "--fps", 2) == 1
    told = capsys.readouterr().err
    assert told.count("at 2 a second are more than 3 frames (--fps)") == 2
    assert len(FrameStore(world / "clips.qvf")) == 0


def test_a_store_is_never_asked_for_more_frames_than_it_has(world, caplog):
    """Of stores of 1 and 2 frames a second: each frame once, at its own time, however many are wished."""
    with TSVWriter(world / "tsv") as store:
        store.append("a", np.zeros((5, 16, 16, 3), np.uint8))
    with FrameStoreWriter(world / "two.qvf") as store:
        store.append("a", np.zeros((10, 16, 16, 3), np.uint8), fps=2.0)
    for path, own in ((world / "tsv", 1.0), (world / "two.qvf", 2.0)):
        for wished in (0.5, 1.0, 2.0, 7.0):
            plan = read_video(StoredPath(path, "a"), wished, 100)[1]
            rate = min(wished, own)
            assert plan.fps == rate and plan.times == tuple((i + 0.5) / rate for i in range(int(5 * rate)))
            assert FramePlan.from_json(plan.to_json()) == plan and plan.decoder in ("tsv", "frames")
            assert plan.decoder_version == PIL.__version__
    assert [message.count("own rate") for message in caplog.messages] == [1] * 3  # each once: 2 and 7, 7


def test_a_store_that_is_cut_finer_keeps_its_times(world):
    """Frames that are wished more often than a store has them are written with the store's rate."""
    with TSVWriter(world / "tsv") as store:
        for name in NAMES:
            store.append(name, np.zeros((3, 8, 8, 3), np.uint8))
    assert run(world, "--fps", 4, "--format", "raw", root="tsv") == 1
    with FrameStore(world / "clips.qvf") as store:
        assert store.as_video(NAMES[0]).probe().fps == 1 and len(store.frames(NAMES[0])) == 3


def test_a_run_that_was_stopped_goes_on(world, monkeypatch):
    def stopped(what):
        raise KeyboardInterrupt

    work, seen = frames.video_bytes, []
    monkeypatch.setattr(
        frames,
        "video_bytes",
        lambda what: seen.append(what[0]) or (work(what) if len(seen) < 2 else stopped(what)),
    )
    with pytest.raises(KeyboardInterrupt):
        run(world)
    assert not (world / "clips.qvf").exists()
    monkeypatch.setattr(frames, "video_bytes", lambda what: seen.append(what[0]) or work(what))
    assert run(world) == 1 and seen == [NAMES[0], NAMES[1], NAMES[1], "none.mp4"]


def test_wrong_usage_is_told(world, capsys):
    assert run(world, "--fps", 0) == 2 and "no such rate" in capsys.readouterr().err
    (world / "clips.qvf").write_text("")
    assert run(world) == 2 and "written once" in capsys.readouterr().err
