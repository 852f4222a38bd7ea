"""Making the embedded world: what is there by the same settings is kept, anything else is made anew."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml

from quicksviewer.synthetic import cli
from quicksviewer.synthetic.cli import MAKERS, main, read_config, reporter, start, wait
from quicksviewer.synthetic.corpus import CorpusConfig
from quicksviewer.synthetic.pretrain import PretrainConfig
from quicksviewer.synthetic.recipe import PRODUCTS, SyntheticConfig, begin, finish, is_made
from quicksviewer.synthetic.world import WorldConfig
from quicksviewer.utils.recipes import RECIPES

SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture
def recipe(tmp_path):
    """The path of a recipe that is made in a second."""
    section = {
        "folder": str(tmp_path / "world"),
        "world": {"max_seconds": 8, "max_events": 3},
        "corpus": {"videos": 2, "held_out": 1, "images": 1, "texts": 2, "questions": 2},
        "pretrain": {"tower_steps": 2, "tower_batch": 2, "lm_steps": 2, "lm_batch": 2},
        "lm_shape": {**SHAPE, "num_key_value_heads": 1},
        "tower_shape": SHAPE,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"synthetic": section}))
    return str(path)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_shipped_recipes_are_read(name):
    config, plain = read_config(name), yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["synthetic"]
    for section in ("world", "corpus", "pretrain"):
        read = getattr(config, section)
        assert {key: getattr(read, key) for key in plain[section]} == plain[section]
    assert config.place("lm").name == plain["family"] == {"tiny": "qwen2", "small": "smollm2"}[name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "--recipe", "tinny"], "tinny"),
        (["make", "--recipe", "7b"], "no section 'synthetic'"),
        (["make", "--recipe", "{bad}"], "familiy"),
    ],
)
def test_wrong_usage_is_said_and_coded(capsys, tmp_path, words, message):
    bad = tmp_path / "bad.yaml"
    bad.write_text("synthetic: {familiy: qwen2}\n")
    assert main([word.format(bad=bad) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_every_product_is_made_and_then_known(recipe, capsys, monkeypatch):
    config = read_config(recipe)
    for product in MAKERS:
        assert not is_made(config, product)
        assert main(["make", "--recipe", recipe, "--only", product]) == 0
        assert is_made(config, product)
    assert {path.name for path in config.place("data").iterdir()} >= {"STAMP", "held_out.jsonl", "videos"}
    for product in ("tower", "lm"):
        assert (config.place(product) / "model.safetensors").is_file()
    monkeypatch.setattr(cli, "start", None)  # nothing more is to be made
    assert main(["make", "--recipe", recipe]) == 0
    assert "already" in capsys.readouterr().out


def test_the_data_come_with_the_tower_and_the_language_model_last(recipe, monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "start", lambda *words: calls.append(words) or words[0])
    monkeypatch.setattr(cli, "wait", calls.append)
    assert main(["make", "--recipe", recipe]) == 0
    first, second, joined, last, ended = calls
    assert (first[0], second[0], joined) == ("data", "tower", ["data", "tower"])
    assert (last[0], last[2], ended) == ("lm", cli.PROCESSES, ["lm"])


CHANGES = {
    "world": {"world": WorldConfig(max_seconds=9)},
    "corpus": {"corpus": CorpusConfig(texts=3)},
    "pretrain": {"pretrain": PretrainConfig(lm_steps=3)},
    "family": {"family": "llama"},
    "tower": {"tower": "clip"},
    "template": {"template": "qwen2"},
    "lm_shape": {"lm_shape": {"hidden_size": 64}},
    "tower_shape": {"tower_shape": {"hidden_size": 64}},
    "folder": {"folder": "elsewhere"},
}


@pytest.mark.parametrize("setting", CHANGES)
def test_a_stamp_names_exactly_the_settings_of_its_product(setting):
    one = SyntheticConfig()
    other = replace(one, **CHANGES[setting])
    for parts in PRODUCTS.values():
        assert (one.stamp(*parts) != other.stamp(*parts)) == (setting in parts)


def test_every_setting_but_the_place_is_of_some_product():
    assert set(CHANGES) == set(SyntheticConfig.__dataclass_fields__)
    assert {part for parts in PRODUCTS.values() for part in parts} == set(CHANGES) - {"folder"}


def test_a_product_begun_again_is_empty_and_not_made(tmp_path):
    config = SyntheticConfig(folder=str(tmp_path))
    (begin(config, "data") / "old").write_text("x")
    finish(config, "data")
    assert is_made(config, "data") and not is_made(replace(config, world=WorldConfig(fps=3)), "data")
    assert list(begin(config, "data").iterdir()) == [] and not is_made(config, "data")


@pytest.mark.parametrize(("field", "near"), [("family", "qwen2"), ("tower", "siglip")])
def test_an_unknown_family_is_answered_with_the_near_one(field, near):
    with pytest.raises(ValueError, match=f"Did you mean '{near}'"):
        SyntheticConfig(**{field: near[:-1]})


# --- processes ---


def run(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.mark.parametrize("place", [0, 1])
def test_as_soon_as_one_process_fails_the_others_are_ended(place):
    jobs = [run("import time; time.sleep(60)")]
    jobs.insert(place, run("raise SystemExit(3)"))
    started = time.monotonic()
    with pytest.raises(SystemExit, match="failed"):
        wait(jobs)
    assert jobs[place].wait(10) == 3 and jobs[1 - place].wait(10) < 0
    assert time.monotonic() - started < 30


def test_processes_that_end_well_are_waited_for(tmp_path):
    wait([run(f"open({str(tmp_path / name)!r}, 'w')") for name in "ab"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_product_is_made_by_this_very_command(monkeypatch, processes):
    monkeypatch.setattr(cli.subprocess, "Popen", lambda command, env: (command, env["OMP_NUM_THREADS"]))
    command, threads = start("lm", "tiny", processes)
    assert threads == "1" and (processes == 1) == ("torch.distributed.run" not in command)
    tail = command[command.index("quicksviewer.synthetic.cli") + 1 :]
    assert tail == ["make", "--recipe", "tiny", "--only", "lm"]


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_the_last_step_is_reported_by_the_first_process(monkeypatch, capsys, rank, lines):
    monkeypatch.setenv("RANK", rank)
    with reporter("work", 3) as step:
        for number in range(3):
            step(loss=float(number))
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["work: 3/3  loss 2.000"] * lines
