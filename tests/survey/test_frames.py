"""The command that writes a frame store: what training reads of the store is what it reads of the videos."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_world import videos

from quicksviewer.data.mixture import DatasetSpec, Mixture
from quicksviewer.survey.frames import main
from quicksviewer.utils.data_util import TSVReader, TSVWriter, open_video, read_video
from quicksviewer.utils.frame_store import FrameStore
from quicksviewer.utils.mm_utils import resize_frames

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


def test_a_run_that_was_stopped_goes_on(world, monkeypatch):
    from quicksviewer.survey import frames

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
