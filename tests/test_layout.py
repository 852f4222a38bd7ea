"""The shape of the repository: who imports whom, what imports with the base alone, how large things are."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "quicksviewer"

# --- import directions ---

GROUND = {"utils", "constants", "conversation"}
LIBRARY = GROUND | {"model", "data", "synthetic"}
MAY_IMPORT = {
    "__init__": {"auto"},
    "auto": {"model", "minimind"},
    "__main__": {"utils"},
    "utils": set(),
    "constants": {"utils"},
    "conversation": {"utils", "constants"},
    "minimind": GROUND,
    "model": GROUND | {"minimind"},
    "data": GROUND,
    "synthetic": GROUND,
    "train": LIBRARY | {"minimind", "zoo", "eval"},
    "eval": LIBRARY,
    "serve": LIBRARY | {"cubes"},
    "cubes": LIBRARY | {"train", "eval"},
    "bench": {"utils"},
    "survey": LIBRARY | {"train"},
    "preprocess": GROUND | {"data"},
    "zoo": GROUND,
    "qwen_vl_finetune": GROUND | {"data", "synthetic"},
}
"""Part of the package -> other parts that it may import; what docs/architecture.md says, as a table."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """ "model" for quicksviewer/model/layout.py, "constants" for quicksviewer/constants.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_names(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also inside functions; relative ones are made whole."""
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def imported_parts(path: Path) -> set[str]:
    """Other parts of the package that a file imports."""
    names = (name.split(".") for name in imported_names(path))
    parts = {name[1] for name in names if name[0] == "quicksviewer" and len(name) > 1}
    return {p for p in parts if (PACKAGE / p).is_dir() or (PACKAGE / f"{p}.py").is_file()} - {part_of(path)}


@pytest.mark.parametrize("part", sorted({part_of(path) for path in modules()}))
def test_imports_go_one_way(part):
    assert part in MAY_IMPORT, (
        f"{part} is new: say in MAY_IMPORT and in docs/architecture.md what it may import"
    )
    wrong = {
        str(path.relative_to(ROOT)): sorted(strangers)
        for path in modules()
        if part_of(path) == part and (strangers := imported_parts(path) - MAY_IMPORT[part])
    }
    assert not wrong


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("import quicksviewer.train.train", {"train"}),
        ("from quicksviewer import eval, __version__", {"eval"}),
        ("def f():\n    from quicksviewer.data.collator import x", {"data"}),
        ("from ..serve import cli", {"serve"}),
        ("from . import layout\nfrom .layout import Layout\nimport torch", set()),
        ("NAME = 'quicksviewer.train.train'", set()),
    ],
)
def test_every_form_of_import_is_seen(monkeypatch, text, parts):
    path = PACKAGE / "model" / "invented.py"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    assert imported_parts(path) == parts


def test_names_of_test_files_are_unique():
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_nothing_is_imported_from_a_conftest():
    """There are several, and which one the name means depends on the order of the tests."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    assert [
        str(path) for path, text in texts.items() if re.search(r"^(from|import) conftest\b", text, re.M)
    ] == []


# --- everything imports ---

OPTIONAL = (
    *("bitsandbytes", "flash_attn", "decord", "torchcodec", "torchvision", "liger_kernel", "gguf", "ray"),
    *(
        "pyarrow",
        "pandas",
        "matplotlib",
        "scenedetect",
        "gradio",
        "playwright",
        "fastapi",
        "uvicorn",
        "cv2",
        "datasets",
        "sklearn",
        "rapidfuzz",
        "easy_vqa",
    ),
)
HEAVY = ("torch", "numpy", "transformers", "deepspeed", "peft", "av", "PIL", "yaml", "rich", *OPTIONAL[7:])

IMPORT_ALL = """
import importlib, importlib.util, json, sys, traceback

hidden, heavy, names = json.loads(sys.argv[1])

class Without:
    '''A finder that does not know the hidden packages, as if they were not installed.'''
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
assert all(importlib.util.find_spec(name) is None for name in hidden)
argv, sys.argv = sys.argv, ["-m"]  # as `python -m quicksviewer` does
import quicksviewer
sys.argv = argv
early = [name for name in heavy if name in sys.modules]
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = "".join(traceback.format_exception_only(error)).strip()
public = [name for name in quicksviewer.__all__ if not hasattr(quicksviewer, name)]
print(json.dumps({"early": early, "failed": failed, "public": public}))
"""


def test_everything_imports_without_the_optional_packages():
    names = [dotted(path) for path in modules()]
    words = [sys.executable, "-c", IMPORT_ALL, json.dumps([OPTIONAL, HEAVY, names])]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == {}
    assert found["public"] == [], "public names that their module does not have"
    assert found["early"] == [], "the command line must load nothing heavy before its word is known"


# --- extras ---


def named_extras(path: Path) -> set[str]:
    """Extras that a file asks for: in a `require`, or in a text on how to install."""
    text = path.read_text(encoding="utf-8")
    found = {name for names in re.findall(r"quicksviewer\[([\w,]+)\]", text) for name in names.split(",")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("require", "registry.require"):
            found |= {arg.value for arg in node.args[1:] if isinstance(arg, ast.Constant)}
    return found


def test_every_extra_that_is_asked_for_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wrong = {str(path.relative_to(ROOT)): named_extras(path) - set(declared) for path in modules()}
    assert {path: names for path, names in wrong.items() if names} == {}


# --- budgets ---

FILE_LINES, FUNCTION_LINES, SHELL_LINES, COLUMNS, ROOT_FILES = 400, 50, 40, 110, 16
EXCEPTIONS: dict[str, str] = {}
"""What may be larger, as the tests name it ("path" or "path:function") -> why."""


def python_files() -> list[Path]:
    return [path for folder in ("quicksviewer", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


def shell_files() -> list[Path]:
    paths = [*ROOT.glob("scripts/**/*.sh"), *PACKAGE.rglob("*.sh"), ROOT / ".ci" / "run"]
    return sorted(path for path in paths if not path.is_symlink())


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def too_long_files() -> dict[str, int]:
    sizes = {path: (len(lines_of(path)), FILE_LINES) for path in python_files()}
    sizes |= {path: (len(lines_of(path)), SHELL_LINES) for path in shell_files()}
    return {str(path.relative_to(ROOT)): size for path, (size, limit) in sizes.items() if size > limit}


def too_long_functions() -> dict[str, int]:
    found = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = node.end_lineno - node.lineno + 1
                if size > FUNCTION_LINES:
                    found[f"{path.relative_to(ROOT)}:{node.name}"] = size
    return found


def test_files_and_functions_stay_short():
    found = too_long_files() | too_long_functions()
    assert {name: size for name, size in found.items() if name not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) <= set(found), "these exceptions are needed no longer"


def test_lines_stay_short():
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files()
        for number, line in enumerate(lines_of(path), start=1)
        if len(line) > COLUMNS
    ]
    assert wide == []


def test_few_files_lie_at_the_root():
    names = sorted(
        path.name for path in ROOT.iterdir() if not path.is_dir() and not path.name.startswith(".")
    )
    assert len(names) <= ROOT_FILES, names


def test_links_are_relative_and_lead_somewhere():
    links = {ROOT / "CONTRIBUTING.md", *(path for path in ROOT.glob("scripts/**/*") if path.is_symlink())}
    for link in links:
        assert not link.readlink().is_absolute(), link
        assert link.resolve().is_file(), link
        assert link.resolve().is_relative_to(ROOT), link
