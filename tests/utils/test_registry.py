"""Tables, targets and optional packages: the right answer, and the useful error."""

import sys

import pytest

from quicksviewer.utils.registry import did_you_mean, load_target, lookup, require

TABLE = {"gumbel": 1, "uniform": 2}


def test_a_known_name_gives_its_row():
    assert lookup(TABLE, "uniform", "cubing") == 2


@pytest.mark.parametrize("name", ["gumble", "Gumbel", "GUMBEL"])
def test_a_wrong_name_is_answered_with_the_near_one_and_all_known(name):
    with pytest.raises(ValueError, match="unknown cubing .* Did you mean 'gumbel'.* Known: gumbel, uniform"):
        lookup(TABLE, name, "cubing")


def test_no_hint_where_nothing_is_near():
    assert did_you_mean("xyz", TABLE) == ""
    with pytest.raises(ValueError, match="Known: none"):
        lookup({}, "xyz", "cubing")


def test_a_target_is_loaded():
    assert load_target("quicksviewer.utils.registry:lookup") is lookup
    assert load_target("collections:OrderedDict.fromkeys")("a") == {"a": None}


@pytest.mark.parametrize("target", ["", "collections", "collections:", ":deque"])
def test_a_target_without_both_halves_is_refused(target):
    with pytest.raises(ValueError, match="module:Name"):
        load_target(target)


def test_a_target_with_a_wrong_name_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="collections has no 'OrderdDict'. Did you mean 'OrderedDict'"):
        load_target("collections:OrderdDict")


def test_require_imports_what_is_there():
    assert require("json", "anything") is sys.modules["json"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.inner"])
def test_require_names_the_extra(module):
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'quicksviewer\[video\]'") as caught:
        require(module, "video")
    assert caught.value.name == "no_such_package"


def test_require_does_not_hide_that_another_module_is_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_dependency'"):
        require("half_installed", "video")
