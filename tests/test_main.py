"""The command line: every word is described, found and given its arguments; the exit code is an answer."""

import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

import quicksviewer
from quicksviewer.__main__ import COMMANDS, main


@pytest.fixture
def word(monkeypatch):
    """Puts a command of one's own into the table and gives the list of arguments that it gets."""
    seen = []

    def add(answer):
        def run(argv):
            seen.append(argv)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        module = ModuleType("invented_command")
        module.main = run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(COMMANDS, "invent", (module.__name__, "a made-up word"))
        return seen

    return add


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_has_a_line_for_every_word(capsys, flag):
    assert main([flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, text) in COMMANDS.items():
        assert sum(line.split(maxsplit=1) == [name, text] for line in lines) == 1


def test_no_word_is_wrong_usage(capsys):
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"quicksviewer {quicksviewer.__version__}\n"


def test_an_unknown_word_is_answered_with_the_near_one(capsys):
    assert main(["trian", "--stage", "stage1"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_module_of_every_word_exists(name):
    assert find_spec(COMMANDS[name][0]) is not None


@pytest.mark.parametrize(
    ("answer", "code"),
    [(0, 0), (1, 1), (2, 2), (None, 0), (SystemExit(2), 2), (SystemExit(), 0), (SystemExit("because"), 1)],
)
def test_the_answer_of_a_word_is_the_exit_code(word, answer, code):
    seen = word(answer)
    assert main(["invent", "--flag", "a b"]) == code
    assert seen == [["--flag", "a b"]]


def test_the_command_runs_as_a_module_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['-m']; from quicksviewer.__main__ import main; main(['--help']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("False\n")
    done = subprocess.run([sys.executable, "-m", "quicksviewer", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2


def test_an_unknown_public_name_is_an_attribute_error():
    assert not hasattr(quicksviewer, "no_such_name")
    assert set(quicksviewer.__all__) <= set(dir(quicksviewer))
