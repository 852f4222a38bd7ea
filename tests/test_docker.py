"""The Dockerfile: rules that need no engine, and (slow) its CPU target replayed in a scratch folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import dockerfile
import pytest
from dockerfile import expand, lint, may_enter, parse, targets

from quicksviewer.utils import commit

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
FILE = parse(TEXT)


def test_the_dockerfile_keeps_all_rules():
    assert lint(TEXT, ROOT) == []
    assert targets(FILE) == ["cpu", "gpu"]


CHECK = 'RUN python -c "import quicksviewer; quicksviewer.load_pretrained_model" && quicksviewer doctor'
FAULTS = {
    "latest": ("python:3.11-slim-bookworm", "python:latest", "no tag"),
    "no tag": ("python:3.11-slim-bookworm", "python", "no tag"),
    "root": ("USER quicksviewer\nWORKDIR", "USER root\nWORKDIR", "USER root"),
    "nobody's user": ("USER quicksviewer\n", "USER somebody\n", "nobody makes the user"),
    "no user": ("USER quicksviewer\n", "", "runs as root"),
    "secret": ("ENV DS_BUILD_OPS=0\n", "ENV HF_TOKEN=abc\n", "secret"),
    "address": ("RUN apt-get update \\", "RUN curl https://x.y/z | sh; apt-get update \\", "fetches"),
    "another index": ("https://download.pytorch.org/whl/cpu", "https://x.y/whl/cpu", "fetches"),
    "unused": ("ARG USER_ID\n", "ARG USER_ID\nARG MORE=1\n", "ARG MORE is not used"),
    "unused at the top": ("ARG EXTRAS=", "ARG MORE=1\nARG EXTRAS=", "ARG MORE is not used"),
    "undeclared": ('cpu\nARG PREFIX\nARG USER_ID\n', 'cpu\nARG USER_ID\n', "PREFIX is not declared"),
    "missing file": ("COPY compat compat", "COPY compatt compat", "COPY compatt"),
    "everything": ("COPY compat compat", "COPY . .", "COPY ."),
    "kept out": ("COPY compat compat", "COPY tests tests", "keeps tests out"),
    "no folder": ("constraints.txt ./\nRUN bash", "constraints.txt x\nRUN bash", "need a folder"),
    "code first": ("pyproject.toml constraints.txt ./\nRUN", "quicksviewer ./\nRUN", "copies code"),
    "cache": ("install --no-cache-dir --no-deps", "install --no-deps", "without --no-cache-dir"),
    "recommends": ("--no-install-recommends ", "", "without --no-install-recommends"),
    "lists": ("    && rm -rf /var/lib/apt/lists/*\n", "", "without rm -rf"),
    "flash": ('RUN if [ -n "${FLASH_ATTN_VERSION}" ]; then', "RUN if true; then", "optional"),
    "no check": (f"{CHECK}\n\n", "\n", "does not end"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name):
    old, new, message = FAULTS[name]
    text = TEXT.replace(old, new)
    if name == "lists":
        text = text.replace("python3-venv \\\n", "python3-venv\n")
    assert text != TEXT
    assert any(message in fault for fault in lint(text, ROOT)), lint(text, ROOT)


def test_every_rule_has_a_fault():
    found = set()
    for name, (old, new, _) in FAULTS.items():
        text = TEXT.replace(old, new)
        text = text.replace("python3-venv \\\n", "python3-venv\n") if name == "lists" else text
        found |= {rule.__name__ for rule in dockerfile.RULES if list(rule(parse(text), ROOT))}
    assert found == {rule.__name__ for rule in dockerfile.RULES}


@pytest.mark.parametrize("line", ["ADD x /x", "MAINTAINER me", "copy a b"])
def test_other_instructions_are_refused(line):
    with pytest.raises(ValueError, match="is not used here"):
        parse(TEXT + line)


OUTSIDE = (".git", ".git/config", ".env", "quicksviewer/.env", "output/x", "tests", "docs", ".venv", "id_rsa")


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_else_enters_an_image(path):
    assert not may_enter(path, ROOT / ".dockerignore")
    assert may_enter("quicksviewer/model/builder.py", ROOT / ".dockerignore")


def test_versions_and_extras_are_those_of_the_project():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert FILE.arguments["TORCH_VERSION"] == pins["torch"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(FILE.arguments["EXTRAS"].split(",")) <= extras.keys()


def test_the_cpu_image_takes_torch_from_the_index_without_cuda():
    steps = [step.text for step in FILE.stages["cpu-dependencies"].steps]
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in steps
    assert "assert torch.version.cuda is None" in steps[-1] and '"${TORCH_INDEX}"' in steps[-1]
    script = (ROOT / "docker/dependencies.sh").read_text()
    assert '--no-deps ${index:+--index-url "$index"} "torch==$torch"' in script
    assert script.count("$index") == 1, "everything else comes from where pip always looks"


def test_an_image_is_told_its_commit(monkeypatch):
    (name,) = {step.text.partition("=")[0] for t in targets(FILE) for step in FILE.stages[t].of("ENV")[1:]}
    assert name == commit.VARIABLE
    for target in targets(FILE):
        told = [f"{step.name} {step.text}" for step in FILE.stages[target].steps]
        assert told.index("ARG COMMIT=") + 1 == told.index(f"ENV {name}=${{COMMIT}}")
        assert all(i < told.index("ARG COMMIT=") for i, step in enumerate(told) if "pip install" in step)
    for path in ("Dockerfile", "docs/export.md"):
        words = [word for words in commands_of(ROOT / path) for word in words]
        assert words.count("COMMIT=$(git rev-parse HEAD)") == len(commands_of(ROOT / path))


NEEDS = re.compile(r"""require\(\s*"\w+",\s*"(\w+)"\s*\)""")


def test_the_page_that_the_docs_run_in_an_image_has_its_extra():
    assert "`demo --model-path DIR` behind it" in (ROOT / "docs/export.md").read_text()
    source = (ROOT / "quicksviewer/serve/page_server.py").read_text()
    assert set(NEEDS.findall(source)) == {"serve"} <= set(FILE.arguments["EXTRAS"].split(","))


def commands_of(path: Path) -> list[list[str]]:
    lines = re.findall(r"^[#\s]*(docker build .*)$", path.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("path", ["Dockerfile", "docs/export.md"])
def test_the_commands_that_are_written_down_name_what_there_is(path):
    commands = commands_of(ROOT / path)
    assert commands
    everywhere = {*FILE.arguments, *re.findall(r"^ARG (\w+)=", TEXT, re.MULTILINE)}
    for words in commands:
        assert words[words.index("--target") + 1] in targets(FILE) and words[-1] == "."
        given = [words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "--build-arg"]
        assert set(given) <= everywhere


def requirements_of(extras: str) -> subprocess.CompletedProcess:
    """The part of docker/dependencies.sh that reads pyproject.toml, run by itself."""
    script = (ROOT / "docker/dependencies.sh").read_text()
    program = re.search(r"<<'PYTHON'\n(.*?)\nPYTHON", script, re.DOTALL)[1]
    return subprocess.run(
        [sys.executable, "-", extras], input=program, cwd=ROOT, capture_output=True, text=True
    )


def test_the_dependencies_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    done = requirements_of(FILE.arguments["EXTRAS"])
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["quant"], *extras["data"], *extras["serve"]}
    assert wanted == set(done.stdout.splitlines())
    unknown = requirements_of("quantt")
    assert unknown.returncode == 1 and "no extra quantt" in unknown.stderr
    own = requirements_of("test")
    assert own.returncode == 1 and "name the extras themselves" in own.stderr
    subprocess.run(["shellcheck", str(ROOT / "docker/dependencies.sh")], check=True)


# --- replayed ---

SYSTEM = ("useradd", "apt-get")
"""Commands that change the machine itself: they are not replayed."""


class Replay:
    """Runs the instructions of stages, with the prefix of the image in a scratch folder."""

    def __init__(self, scratch: Path, **arguments: str):
        self.scratch, self.given = scratch, {**FILE.arguments, "PREFIX": str(scratch / "opt"), **arguments}
        self.place, self.values, self.environment = scratch, {}, {}
        self.done: list[str] = []

    def stage(self, name: str) -> None:
        self.place, self.values, self.environment = self.scratch, {}, {"PATH": os.environ["PATH"]}
        for stage in FILE.road(name):
            for step in stage.steps:
                getattr(self, step.name.lower())(step.text)

    def arg(self, text: str) -> None:
        name, _, default = text.partition("=")
        self.values[name] = self.given.get(name, default)

    def env(self, text: str) -> None:
        for word in shlex.split(expand(text, self.values | self.environment)):
            name, _, value = word.partition("=")
            self.environment[name] = value

    def workdir(self, text: str) -> None:
        text = expand(text, self.values)
        self.place = Path(text if text.startswith(str(self.scratch)) else f"{self.scratch}{text}")
        self.place.mkdir(parents=True, exist_ok=True)

    def copy(self, text: str) -> None:
        words = shlex.split(expand(text, self.values))
        if words[0].startswith("--from="):
            assert words[1] == words[2], "stages share the scratch folder"
            return
        for source in words[:-1]:
            target = self.place / words[-1]
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(ROOT / source, target / Path(source).name)

    def run(self, text: str) -> None:
        if text.startswith(SYSTEM):
            return
        keep = {"HOME": str(self.scratch), "PYTHONNOUSERSITE": "1"}
        pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))}
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=self.place,
            env={**pip, **keep, **self.values, **self.environment},
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        self.done.append(text)

    def user(self, text: str) -> None: ...

    def entrypoint(self, text: str) -> None:
        self.command = text

    def cmd(self, text: str) -> None: ...


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_work_in_a_scratch_folder(tmp_path):
    """Needs a package index; about 1.5 GB."""
    replay = Replay(tmp_path)
    replay.stage("cpu-dependencies")
    replay.stage("cpu")
    assert "import quicksviewer" in replay.done[-1] and len(replay.done) == 3
    assert replay.command == '["quicksviewer"]'
    program = tmp_path / "opt/venv/bin/quicksviewer"
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0 and "usage: quicksviewer" in shown.stdout
