"""The picture of cuts, its numbers, and the priors that a container gives."""

import itertools
from dataclasses import astuple

import numpy as np
import pytest
import torch
from PIL import Image

from quicksviewer.cubes.command import main
from quicksviewer.cubes.measures import boundary_f1, error_ratio, least_error, within_error
from quicksviewer.cubes.methods import METHODS, Clip, cut_with, small_pictures
from quicksviewer.cubes.picture import draw, save
from quicksviewer.model.config import CubingConfig
from quicksviewer.synthetic.video import write_video
from quicksviewer.utils.data_util import MediaError, MediaLimits, read_video
from quicksviewer.utils.packets import Packets, key_frame_samples, packet_scores, read_packets

SCENES = (7, 4, 9)
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 220))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """20 frames at 2 per second: three still scenes, each of its own colour and grain."""
    rng = np.random.default_rng(0)
    scenes = np.array(COLOURS)[:, None, None] + rng.integers(0, 30, (3, 32, 32, 3))
    frames = np.repeat(np.clip(scenes, 0, 255).astype(np.uint8), SCENES, axis=0)
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, frames, fps=2)
    return path


def clip_of(path, **values) -> Clip:
    frames, plan = read_video(path, 2.0, 100)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    config = CubingConfig(**{"frames_per_cube": 20 / 3, **values})
    return Clip(str(path), torch.tensor(plan.times), pixels, small_pictures(pixels), config)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "uniform"])
def test_every_method_finds_the_cuts_of_clean_scenes(film, method):
    assert cut_with(method, clip_of(film)) == [7, 11]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_number_and_the_lengths_of_cubes(film, method):
    clip = clip_of(film, frames_per_cube=4, min_cube_frames=3, max_cube_frames=6)
    edges = [0, *cut_with(method, clip), 20]
    assert len(edges) == clip.num_cubes + 1
    if method != "uniform":
        assert all(3 <= b - a <= 6 for a, b in itertools.pairwise(edges))


def test_an_unknown_method_is_named(film):
    with pytest.raises(ValueError, match="Did you mean 'codec'"):
        cut_with("codecs", clip_of(film))


def test_packets_are_those_of_every_frame(film):
    packets, here = read_packets(film), read_packets(film, MediaLimits())
    assert packets.seconds.tolist() == pytest.approx([i / 2 for i in range(20)])
    assert packets.is_key[0] and (packets.sizes > 0).all()
    for ours, theirs in zip(astuple(packets), astuple(here), strict=True):  # in a child, and in this process
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_more_packets_than_a_video_may_have_frames_are_refused(film, isolation):
    with pytest.raises(MediaError, match="film.mp4: has more than 19 packets"):
        read_packets(film, MediaLimits(isolation=isolation, max_frames=19))


def test_a_file_without_video_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video at all")
    with pytest.raises(MediaError, match="a.mp4"):
        read_packets(path)


def test_packet_scores_by_hand():
    sizes = np.array([100, 10, 10, 80, 10, 200, 10])
    keys = np.array([True, False, False, False, False, True, False])
    packets = Packets(np.arange(7.0), sizes, keys)
    score = packet_scores(packets, [0.5, 2.5, 4.5, 6.5])
    # medians: 10 of plain packets, 150 of key frames; a key frame has a bonus of 1
    assert score.tolist() == pytest.approx([0.0, 0.0, np.log(8), np.log(200 / 150) + 1])
    assert key_frame_samples(packets, [0.5, 2.5, 4.5, 6.5]) == [3]


def test_f1_of_cuts():
    assert boundary_f1([], []) == 1.0 and boundary_f1([3], []) == 0.0
    assert boundary_f1([3, 9], [4, 8]) == 1.0
    assert boundary_f1([3, 9], [5, 12]) == 0.0
    assert boundary_f1([3, 4], [4]) == pytest.approx(2 / 3)  # a cut is matched once
    assert boundary_f1([2, 3], [3, 4]) == 1.0


def test_f1_matches_as_many_as_possible():
    rng = np.random.default_rng(0)
    for _ in range(60):
        found, true = (sorted(rng.choice(12, 4, replace=False).tolist()) for _ in range(2))
        best = max(
            sum(abs(a - b) <= 1 for a, b in zip(found, order, strict=True))
            for order in itertools.permutations(true)
        )
        assert boundary_f1(found, true) == pytest.approx(best / 4)


def test_the_least_error_is_that_of_the_best_cuts():
    x = torch.randn(11, 3)
    every = itertools.combinations(range(1, 11), 2)
    assert least_error(x, 3) == pytest.approx(min(within_error(x, cuts) for cuts in every))
    assert error_ratio(torch.ones(9, 2), [3]) == 1.0


def test_the_picture_has_a_bar_for_every_method(tmp_path):
    pixels = torch.full((30, 3, 8, 8), 90, dtype=torch.uint8)
    one, two = ({name: [4, 20] for name in names} for names in (["a"], ["a", "b"]))
    small, large = (draw(pixels, torch.arange(30.0), cuts, ["line"]) for cuts in (one, two))
    assert large.height > small.height and large.width == small.width
    save(tmp_path / "a" / "s.png", large)
    assert Image.open(tmp_path / "a" / "s.png").size == large.size
    save(tmp_path / "s.html", large)
    assert "data:image/png;base64," in (tmp_path / "s.html").read_text()
    with pytest.raises(ValueError, match=r"\.png or \.html"):
        save(tmp_path / "s.gif", large)


def test_the_command_without_a_model(film, tmp_path, capsys):
    out = tmp_path / "strip.png"
    methods = ["momentum", "uniform", "change_point", "optimal", "codec"]
    args = [str(film), "--fps", "2", "--frames-per-cube", "6.6", "--methods", *methods, "-o", str(out)]
    assert main(args) == 0
    assert out.is_file()
    shown = capsys.readouterr().out
    assert all(method in shown for method in methods) and "20 frames" in shown


def test_the_command_with_a_model(film, tiny, tmp_path, capsys):
    from tiny_world import fresh

    loaded = fresh(tiny)
    folder = tmp_path / "model"
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    out = tmp_path / "strip.html"
    assert (
        main([str(film), "--model-path", str(folder), "--methods", "momentum", "optimal", "-o", str(out)])
        == 0
    )
    assert out.is_file() and "momentum" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["--methods", "guess"], ["-o", "strip.gif"], ["--model-path", "nowhere"]])
def test_wrong_usage(film, args):
    assert main([str(film), *args]) == 2


def test_a_missing_video(capsys):
    assert main(["missing.mp4"]) == 1
    assert "missing.mp4" in capsys.readouterr().err
