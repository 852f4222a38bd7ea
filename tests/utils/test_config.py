"""Settings: what is read is what was written, and every typo is an error that names its place."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from quicksviewer.utils.config import build, load_mapping, save_json, to_plain


@dataclass(frozen=True, kw_only=True)
class Cubing:
    kind: Literal["gumbel", "uniform"] = "gumbel"
    frames_per_cube: int = 6
    tau: float = 1.0

    def __post_init__(self):
        if self.frames_per_cube < 1:
            raise ValueError(f"frames_per_cube must be at least 1, got {self.frames_per_cube}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    cubing: Cubing = Cubing()
    sizes: tuple[int, ...] = ()
    span: tuple[float, float] = (0.0, 1.0)
    stages: tuple[Cubing, ...] = ()
    limit: int | None = None
    mixture: dict[str, float] = field(default_factory=dict)
    folder: Path = Path("output")
    sharded: bool = False
    extra: Any = None
    rate: float | str = "auto"


PLAIN = {
    "name": "7b",
    "cubing": {"kind": "uniform", "tau": 2},
    "sizes": [1, 2, 3],
    "span": [0, 0.5],
    "stages": [{"frames_per_cube": 1}, {}],
    "limit": 3,
    "mixture": {"a": 1, "b": 0.5},
    "folder": "some/where",
    "sharded": True,
    "extra": {"free": [1]},
    "rate": 1,
}


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


# --- reading ---


@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.json", "A.JSON"])
def test_both_formats_give_the_same_mapping(tmp_path, name):
    path = write(tmp_path, name, '{"rate": 1e-3, "names": ["a", "b"], "deep": {"on": true, "none": null}}')
    assert load_mapping(path) == {"rate": 1e-3, "names": ["a", "b"], "deep": {"on": True, "none": None}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2.5E+4", 2.5e4),
        ("1_000", 1000),
        ("0", 0),
        ("-7", -7),
        ("0x10", 16),
        (".5", 0.5),
        ("true", True),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("007", "007"),
        ("'1'", "1"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_yaml_scalars(tmp_path, text, value):
    found = load_mapping(write(tmp_path, "a.yaml", f"key: {text}\n"))["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "one: 1\ndeep:\n  two: 2\n  two: 3\n"),
        ("a.json", '{"one": 1,\n "deep": {\n\t"two": 2,\n\t"two": 3}}'),
    ],
)
def test_a_key_said_twice_is_an_error_with_file_and_line(tmp_path, name, text):
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match="line 4: key 'two' is already set in line 3") as caught:
        load_mapping(path)
    assert str(path) in str(caught.value)


def test_yaml_anchors_may_be_overridden(tmp_path):
    text = "base: &base {a: 1, b: 2}\nnext: &next\n  <<: *base\n  a: 3\nlast:\n  <<: *next\n  b: 4\n"
    found = load_mapping(write(tmp_path, "a.yaml", text))
    assert found["next"] == {"a": 3, "b": 2}
    assert found["last"] == {"a": 3, "b": 4}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "", "top level must be a mapping, got NoneType"),
        ("a.yaml", "- 1\n", "top level must be a mapping, got list"),
        ("a.json", "[1]", "top level must be a mapping, got list"),
        ("a.yaml", "a: [1\n", "not readable as YAML"),
        ("a.yaml", "a: !!python/object:os.system {}\n", "not readable as YAML"),
        ("a.json", '{\n"a": }', "line 2: not readable as JSON"),
        ("a.toml", "a = 1", "suffix must be one of .yaml, .yml, .json"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, message):
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_mapping(path)
    assert str(path) in str(caught.value)


# --- building ---


def test_plain_values_become_the_declared_types():
    recipe = build(Recipe, PLAIN, "7b.yaml")
    assert recipe == Recipe(
        name="7b",
        cubing=Cubing(kind="uniform", tau=2.0),
        sizes=(1, 2, 3),
        span=(0.0, 0.5),
        stages=(Cubing(frames_per_cube=1), Cubing()),
        limit=3,
        mixture={"a": 1.0, "b": 0.5},
        folder=Path("some/where"),
        sharded=True,
        extra={"free": [1]},
        rate=1.0,
    )
    assert type(recipe.cubing.tau) is float
    assert type(recipe.rate) is float


def test_to_plain_is_the_inverse_of_build():
    recipe = build(Recipe, PLAIN, "7b.yaml")
    plain = to_plain(recipe)
    assert json.loads(json.dumps(plain)) == plain
    assert build(Recipe, plain, "again") == recipe


def test_a_built_part_is_taken_as_it_is():
    part = Cubing(tau=3.0)
    assert build(Recipe, {"name": "x", "cubing": part}, "here").cubing is part


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cubbing": {}}, "^7b.yaml: Recipe has no 'cubbing'. Did you mean 'cubing'"),
        ({"cubing": {"knd": "x"}}, "^7b.yaml > cubing: Cubing has no 'knd'. Did you mean 'kind'"),
        ({"cubing": {"kind": "gumble"}}, "^7b.yaml > cubing > kind: 'gumble' is not a choice. Did you mean"),
        ({"cubing": {"frames_per_cube": 0}}, "^7b.yaml > cubing: frames_per_cube must be at least 1, got 0"),
        ({"cubing": {"frames_per_cube": 2.0}}, "> frames_per_cube: expected int, got 2.0"),
        ({"cubing": {"frames_per_cube": True}}, "> frames_per_cube: expected int, got True"),
        ({"cubing": {"tau": "1"}}, "> tau: expected float, got '1'"),
        ({"cubing": None}, "> cubing: expected a mapping for Cubing, got nothing"),
        ({"cubing": []}, "> cubing: expected a mapping for Cubing, got"),
        ({"stages": [{}, {"tau": "x"}]}, r"> stages\[1\] > tau: expected float"),
        ({"sizes": 3}, r"> sizes: expected tuple\[int, ...\], got 3"),
        ({"sizes": "12"}, "> sizes: expected tuple"),
        ({"span": [1.0]}, "> span: expected 2 values, got 1"),
        ({"limit": "3"}, "> limit: expected int, got '3'"),
        ({"mixture": {"a": "lots"}}, "> mixture > a: expected float"),
        ({"mixture": ["a"]}, "> mixture: expected dict"),
        ({"sharded": 1}, "> sharded: expected bool, got 1"),
        ({"sharded": "true"}, "> sharded: expected bool"),
        ({"name": None}, "> name: expected str, got nothing"),
        ({"rate": [1]}, "> rate: expected float | str"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(change, message):
    with pytest.raises(ValueError, match=message):
        build(Recipe, PLAIN | change, "7b.yaml")


def test_a_missing_value_is_named():
    with pytest.raises(ValueError, match="^here: Recipe needs 'name'$"):
        build(Recipe, {}, "here")


def test_an_optional_value_may_be_nothing():
    assert build(Recipe, {"name": "x", "limit": None}, "here").limit is None


def test_true_is_not_the_choice_one():
    @dataclass(frozen=True)
    class Bits:
        bits: Literal[1, 4, 8] = 4

    assert build(Bits, {"bits": 8}, "here").bits == 8
    with pytest.raises(ValueError, match="True is not a choice. Known: 1, 4, 8"):
        build(Bits, {"bits": True}, "here")


# --- writing ---


def test_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "recipe.json"
    save_json(path, build(Recipe, PLAIN, "7b.yaml"))
    assert build(Recipe, load_mapping(path), str(path)) == build(Recipe, PLAIN, "7b.yaml")
    assert path.read_text().endswith("}\n")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    save_json(path, {"step": 1})
    with pytest.raises(TypeError, match="no plain form for a object"):
        save_json(path, {"step": object()})

    def no_rename(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(OSError, match="disk full"):
        save_json(path, {"step": 2})
    assert load_mapping(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.json"]
