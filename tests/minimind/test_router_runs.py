"""Routers in a run: their loss is the same however a step is split, and the logs say who was busy."""

import json

import pytest
from tiny_runs import run, text_rows, video_rows, write_recipe

from quicksviewer.minimind.telemetry import main, shares_in

PACKED = ["1", "1", "--pack", "True", "--pack_max_tokens", "2000"]
SPLITS = {
    "2 ranks": (2, "train", ["1", "2"]),
    "a pack": (1, "train", PACKED),
    "a team": (2, "train_hybrid", [*PACKED, "--seq_parallel_size", "2", "--seq_parallel_ring_size", "2"]),
}
NAMES = ["2 ranks", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a pack", "a team"))]


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """One step over four rows of different length."""
    rows = [*video_rows(tiny, 2), *text_rows(tiny, 2)]
    steps = dict(max_steps=1, train_sampling_strategy="sequential", learning_rate=1e-3)
    own = dict(model_name_or_path=str(tiny / "minimind"), noise_start=0.0, noise_end=0.0)
    return write_recipe(tiny, tmp_path_factory.mktemp("routers"), rows, **steps, **own)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """One process, one micro-batch of four rows: the folder and the log entry of its step."""
    out = tmp_path_factory.mktemp("whole") / "out"
    flags = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
    return out, run(recipe, out, 1, *flags)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_same_however_it_is_split(recipe, whole, tmp_path, name):
    ranks, entry, (rows, accumulation, *more) = SPLITS[name]
    flags = ["--per_device_train_batch_size", rows, "--gradient_accumulation_steps", accumulation, *more]
    ours = run(recipe, tmp_path / "out", ranks, *flags, entry=entry)[0]
    for key in ("loss_tokens", "loss_router", "grad_norm"):
        assert ours[key] == pytest.approx(whole[1][key], rel=1e-4), key
    assert (
        whole[1]["loss_router"] > 2 * 0.01
    )  # two layers, each at least its alpha, which even use would give


def test_the_run_can_be_drawn(whole, tmp_path, capsys):
    out, logs = whole
    assert shares_in(logs).sum(dim=1).tolist() == pytest.approx([1, 1])
    assert main([str(out)]) == 0 and (out / "experts.png").stat().st_size > 5000
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 1.0}]}))
    assert main([str(tmp_path)]) == 1 and "no log entry holds shares" in capsys.readouterr().out
