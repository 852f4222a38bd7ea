"""A benchmark in small during training: the numbers of the harness, and nothing of the training changed."""

import json

import pytest
from tiny_runs import run, text_rows, video_rows, write_recipe

from quicksviewer.eval.run import main
from quicksviewer.train.args import parse_args
from quicksviewer.train.systems import system_named

STEPS = 4
HEAD = "eval_world_"


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """Four steps with the gate's noise on, a mini-evaluation in the middle and at the end."""
    rows = video_rows(tiny, 4) + text_rows(tiny, 4)
    folder = tmp_path_factory.mktemp("mini")
    return write_recipe(
        tiny, folder, rows, max_steps=STEPS, learning_rate=5e-3, per_device_train_batch_size=2
    )


def asked(tiny) -> list[str]:
    words = ["--eval_task", "world", "--eval_every_steps", "2", "--eval_limit", "12"]
    return [*words, "--eval_data", str(tiny / "data")]


def entries(out) -> dict[int, dict]:
    """Step -> what the mini-evaluation logged there, without its time."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    found = [entry for entry in history if f"{HEAD}accuracy" in entry]
    assert all(entry[f"{HEAD}seconds"] > 0 for entry in found)
    return {
        entry["step"]: {k: v for k, v in entry.items() if k.startswith(HEAD) and k != f"{HEAD}seconds"}
        for entry in found
    }


@pytest.fixture(scope="module")
def single(tiny, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("single")
    losses = [entry["loss"] for entry in run(recipe, out, 1, *asked(tiny))]
    return losses, entries(out), out


def test_it_logs_what_the_harness_finds(tiny, single, tmp_path):
    _, logged, out = single
    assert sorted(logged) == [2, 4]
    words = ["world", "--model-path", out, "--data", tiny / "data", "--output", tmp_path / "o.json"]
    assert main([*map(str, words), "--limit", "12", "--device", "cpu"]) == 0
    rows = json.loads((tmp_path / "o.json").read_text())["by_kind"]
    whole = rows.pop("overall")
    expected = {f"{HEAD}accuracy/{kind}": row["accuracy"] for kind, row in rows.items()}
    expected |= {f"{HEAD}{name}": whole[name] for name in ("accuracy", "items", "unanswered", "failed")}
    assert logged[STEPS] == expected and whole["items"] == 12


def test_training_is_the_same_without_it(recipe, single, tmp_path):
    assert [entry["loss"] for entry in run(recipe, tmp_path, 1)] == single[0]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--deepspeed", "zero2.json"), ("--deepspeed", "zero3.json")], ids=str)
def test_ranks_log_what_one_process_logs(tiny, recipe, single, tmp_path, flags):
    more = ["--per_device_train_batch_size", "1", *asked(tiny), *flags]
    ranks = [
        entry["loss"] for entry in run(recipe, tmp_path, 2, *more, "--noise_start", "0", "--noise_end", "0")
    ]
    calm = tmp_path / "calm"
    alone = run(recipe, calm, 1, *asked(tiny), "--noise_start", "0", "--noise_end", "0")
    assert ranks == pytest.approx([entry["loss"] for entry in alone], rel=1e-4)
    assert entries(tmp_path) == entries(calm)


@pytest.mark.slow
def test_packed_rows_and_adapters_are_asked_too(tiny, recipe, tmp_path):
    for name, flags in {
        "packed": ["--pack", "True"],
        "lora": ["--lora_enable", "True", "--lora_r", "4"],
    }.items():
        run(recipe, tmp_path / name, 1, *asked(tiny), *flags)
        logged = entries(tmp_path / name)
        assert sorted(logged) == [2, 4] and logged[4][f"{HEAD}failed"] == 0
        out = tmp_path / f"{name}.json"
        words = ["world", "--model-path", tmp_path / name, "--data", tiny / "data", "--output", out]
        assert main([*map(str, words), "--limit", "12", "--device", "cpu"]) == 0
        whole = json.loads(out.read_text())["by_kind"]["overall"]
        assert logged[4][f"{HEAD}accuracy"] == whole["accuracy"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_every_steps", "2"], "--eval_every_steps need --eval_task"),
        (["--eval_task", "world"], "needs --eval_every_steps"),
        (["--eval_task", "world", "--eval_every_steps", "0"], "at least 1, got 0"),
        (["--eval_task", "wrld", "--eval_every_steps", "1"], "Did you mean 'world'"),
        (["--eval_task", "activitynetqa", "--eval_every_steps", "1"], "needs a judge"),
        (["--eval_task", "mvbench", "--eval_every_steps", "1"], "--eval_data must name the folder"),
        (["--eval_task", "world", "--eval_every_steps", "1", "--eval_data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_asked_is_said_before_the_run(recipe, tmp_path, flags, message):
    words = ["--recipe", str(recipe), "--stage", "stage3", "--output_dir", str(tmp_path), *flags]
    settings = parse_args(words)
    with pytest.raises((ValueError, OSError), match=message):
        system_named(settings.system).check_run(settings)
