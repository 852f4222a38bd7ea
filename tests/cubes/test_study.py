"""The study: its document says what was measured, and a whole run of it works."""

import json
from argparse import Namespace

import pytest
import torch

from quicksviewer.bench import main as bench
from quicksviewer.cubes.brief import is_alone
from quicksviewer.cubes.methods import Clip
from quicksviewer.cubes.report import verdict, write_document
from quicksviewer.cubes.study import METHODS, main
from quicksviewer.cubes.truth import event_cuts, recall, together
from quicksviewer.model.config import CubingConfig
from quicksviewer.synthetic.world import Event, World


def result(method, seed, overall, brief, found=0.5):
    own = {"recall": found, "f1": 0.4, "within": 0.2, "least": 0.1}
    return {
        "settings": {"method": method, "seed": seed},
        "train_seconds": 120.0,
        "accuracy": {"overall": overall, "brief": brief},
        "items": {"overall": 10, "brief": 4},
        "cuts": {"own": own},
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_study_is_a_cubing(name):
    assert CubingConfig(**METHODS[name]).kind == METHODS[name]["kind"]


def test_a_win_of_uniform_cubes_is_said_first(tmp_path):
    results = [result("uniform", s, 0.6, 0.5) for s in (0, 1)] + [
        result("soft", s, 0.5, 0.25) for s in (0, 1)
    ]
    path = tmp_path / "study.md"
    write_document(path, results, Namespace(steps=None, recipe="tiny", seeds=2))
    lines = path.read_text().splitlines()
    assert "-10.0 points" in lines[2] and "Uniform cubes win against soft." in lines[2]
    assert "| uniform | 0.600 ± 0.000 | 0.500 ± 0.000 |" in path.read_text()
    assert {p.name for p in tmp_path.iterdir()} == {
        "study.md",
        *(f"study_{n}.png" for n in ("accuracy", "recall", "within")),
    }


def test_a_gain_is_a_gain():
    groups = {"uniform": [result("uniform", 0, 0.5, 0.2)], "soft": [result("soft", 0, 0.6, 0.3)]}
    assert "+10.0 points" in verdict(groups) and "win against none" in verdict(groups)


def test_true_cuts_are_the_first_frames_of_events():
    rest = dict(colour="red", shape="circle", motion="left", background="black", word=None, place=(0.5, 0.5))
    world = World(0, tuple(Event(a, b, **rest) for a, b in ((0, 3), (3, 4), (4, 9))), (3,))
    assert event_cuts(world, [0.5 + i for i in range(9)]) == [3, 4]
    assert event_cuts(world, [1.0, 4.0, 7.0]) == [1]  # the second event fell between samples
    assert recall([2, 8], [3, 4]) == 0.5 and recall([], []) == 1.0


def test_distances_are_summed_over_videos_before_they_are_compared():
    still = {"f1": 1.0, "recall": 1.0, "within": 0.0, "least": 0.0, "whole": 0.0}
    moving = {"f1": 0.5, "recall": 0.0, "within": 3.0, "least": 1.0, "whole": 10.0}
    assert together([still, moving]) == {"f1": 0.75, "recall": 0.5, "within": 0.3, "least": 0.1}


def test_a_short_event_is_alone_where_both_its_borders_are_cuts():
    rest = dict(colour="red", shape="circle", motion="left", background="black", word=None, place=(0.5, 0.5))
    world = World(0, tuple(Event(a, b, **rest) for a, b in ((0, 3), (3, 4), (4, 9))), (3,))
    times = torch.arange(18) / 2 + 0.25
    clip = Clip("a.mp4", times, torch.zeros(18, 3, 2, 2), torch.zeros(18, 2), CubingConfig())
    for cuts, alone in (([6, 8], True), ([6, 7, 8], True), ([6], False), ([5, 8], False), ([], False)):
        assert is_alone(world, clip, cuts) == alone


def test_wrong_usage(capsys):
    assert main(["--methods", "guess"]) == 2
    assert main(["--recipe", "7b"]) == 2
    assert bench(["nothing"]) == 2
    assert "study" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_of_one_step(tiny, tmp_path):
    recipe = {
        "synthetic": {
            "folder": str(tiny),
            "world": {"max_seconds": 12, "max_events": 4},
            "corpus": {"videos": 6, "held_out": 2, "images": 6, "texts": 4, "questions": 4},
        },
        "mm": {
            "cubing": {"frames_per_cube": 3},
            "resampler": {"queries": 4, "head_width": 32},
            "layout": {"time_digits": 2, "time_decimals": 0},
        },
        "shared": {
            "vision_tower": str(tiny / "siglip"),
            "model_name_or_path": str(tiny / "qwen2"),
            "version": "plain",
            "video_num_frames": 16,
            "model_max_length": 640,
            "use_cpu": True,
            "bf16": False,
            "data_path": "questions",
            "data_registry": str(tmp_path / "world.json"),
            "report_to": "none",
            "save_strategy": "no",
            "per_device_train_batch_size": 2,
        },
        **{stage: {"max_steps": 1} for stage in ("stage1", "stage2", "stage3")},
    }
    rows = {"path": str(tiny / "data/questions.jsonl"), "media_root": str(tiny / "data")}
    (tmp_path / "world.json").write_text(json.dumps({"questions": rows}))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))
    document = tmp_path / "cubing.md"
    args = ["--recipe", str(path), "--methods", "uniform", "soft", "--seeds", "1", "--limit", "4"]
    args += ["--output", str(tmp_path / "runs"), "--document", str(document)]
    assert main(args) == 0
    assert "| soft |" in document.read_text()
    assert len(json.loads(document.with_suffix(".json").read_text())) == 2
    first = (tmp_path / "runs/soft_0/result.json").stat().st_mtime_ns
    assert main(args) == 0  # read, not run again
    assert (tmp_path / "runs/soft_0/result.json").stat().st_mtime_ns == first
