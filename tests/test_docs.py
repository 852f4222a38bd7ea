"""What the documents tell people to type: every command is one that its program takes, every snippet runs or
names what there is, every link leads somewhere.

Commands are not carried out: their own parsers read them and stop there. What they do is tested elsewhere.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from tiny_world import fresh, videos
from torch.distributed.run import get_args_parser

from quicksviewer.__main__ import COMMANDS, main
from quicksviewer.data.preprocess import parse_sample
from quicksviewer.train.args import read_settings

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "compat/**/*.md", "configs/**/*.md", "benchmarks/**/*.md")
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"
)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
STAGE = re.compile(r"scripts/(stage[123])\.sh")


# --- what stands in the pages ---


@dataclass(frozen=True)
class Block:
    """A piece of code, `kind` its language ("" where none is said, "inline" within a line of text)."""

    where: str
    kind: str
    text: str

    def __str__(self):
        return self.where


def blocks(page: Path) -> Iterator[Block]:
    name = page.relative_to(ROOT)
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        where = f"{name}:{token.map[0] + 1}" if token.map else str(name)
        if token.type in ("fence", "code_block"):
            yield Block(where, token.info.strip(), token.content)
        for child in token.children or () if token.type == "inline" else ():
            if child.type == "code_inline":
                yield Block(where, "inline", child.content)


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of every command in a block, without comments. Of text within a line, only what has words."""
    if block.kind not in ("", "bash", "sh", "inline"):
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        if not re.match(r"(\w+=\S* )*\S*(" + "|".join(PROGRAMS) + r")( |$)", line):
            continue
        for part in shlex.join(shlex.split(line, comments=True)).split(" '&&' "):
            words = list(takewhile(lambda word: word != ">", shlex.split(part)))
            if len(words) > 1 and "WORD" not in words:
                yield words


# --- commands that are parsed and not carried out ---


class Parsed(BaseException):
    """The command line was understood; nothing has been done yet."""


@pytest.fixture
def understood(monkeypatch):
    """Calls a `main` with arguments and says whether a parser took them all."""
    original, depth = ArgumentParser.parse_known_args, []

    def spy(self, *args, **options):
        depth.append(self)
        try:
            values, rest = original(self, *args, **options)
        finally:
            depth.pop()
        if depth or not self.add_help:  # a part of another parser, or a first look at two flags
            return values, rest
        if rest and self.prog == "quicksviewer train":
            return values, rest  # it names the strangers
        if rest:  # flags of a run, which words about its data take as well
            depth.append(self)
            read_settings(rest, needs_files=False)
            depth.pop()
        raise Parsed

    def understood(call, argv) -> bool:
        monkeypatch.setattr(ArgumentParser, "parse_known_args", spy)
        try:
            code = call(argv)
        except Parsed:
            return True
        except SystemExit as stop:
            code = stop.code
        return code == 0 and bool({"--help", "-h", "--version", "--list"} & set(argv))

    return understood


def word_of_ours(argv: list[str], understood) -> bool:
    if len(argv) == 1 or len(argv) == 2 and argv[0] in ("bench", "cubes", "data", "delta", "eval", "zoo"):
        argv = [*argv, "--help"]  # a name in running text
    if argv[0] == "train" and "--help" not in argv:
        return bool(read_settings(argv[1:], needs_files=False))
    return understood(main, argv)


def module(argv: list[str], understood) -> bool:
    name, rest = argv[0], argv[1:]
    if name == "quicksviewer":
        return word_of_ours(rest, understood)
    if name == "torch.distributed.run":
        given = get_args_parser().parse_args(rest)
        return given.module and module([given.training_script, *given.training_script_args], understood)
    if name == "pytest":
        return all((ROOT / word.split("::")[0]).exists() for word in rest if not word.startswith("-"))
    if name == "lmms_eval":
        said = dict(pair.split("=") for pair in rest[rest.index("--model_args") + 1].split(","))
        adapter = (ROOT / "quicksviewer/eval/lmms_eval_adapter.py").read_text()
        return all(f"{name}:" in adapter or f'"{name}"' in adapter for name in said)
    if name.startswith("quicksviewer.train.train"):
        return bool(read_settings(rest, needs_files=False))
    found = import_module(name)
    return not rest or understood(found.main, rest)


def python(words: list[str], understood) -> bool:
    kind, *rest = words
    if kind == "-m":
        return module(rest, understood)
    if kind == "-c":
        return names_exist(rest[0])
    script = next(path for path in (ROOT / kind, ROOT / "compat" / kind) if path.is_file())
    if kind == "playground/demo.py":
        return word_of_ours(["demo", *rest], understood)
    return not rest and bool(ast.parse(script.read_text(encoding="utf-8")))


def bash(words: list[str], understood) -> bool:
    script, *rest = words
    if stage := STAGE.fullmatch(script):
        return bool(read_settings(["--stage", stage[1], *rest], needs_files=False))
    if script == "scripts/setup.sh":
        return set(rest) <= set(EXTRAS)
    if script == "scripts/test.sh":
        return all((ROOT / word).exists() for word in rest if "/" in word)
    if script == "quicksviewer/eval/run_eval.sh":
        told = subprocess.run(
            ["bash", ROOT / script, *rest],
            env=os.environ | {"DRY_RUN": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        return python(shlex.split(told.stdout)[1:], understood)
    return (ROOT / script).is_file()


def pip(words: list[str], understood) -> bool:
    if words[0] != "install":
        return words[0] == "uninstall"
    asked = {name for word in words for named in re.findall(r"\[(.+)\]", word) for name in named.split(",")}
    files = [after for word, after in zip(words, words[1:], strict=False) if word in ("-c", "-r")]
    places = [word for word in words if word.startswith("./")]
    return asked <= set(EXTRAS) and all((ROOT / path).exists() for path in [*files, *places])


def srun(words: list[str], understood) -> bool:
    return bash(words[words.index("bash") + 1 :], understood)


def sbatch(words: list[str], understood) -> bool:
    place = words.index("scripts/slurm.sbatch")
    return bash([f"scripts/{words[place + 1]}.sh", *words[place + 2 :]], understood)


def docker(words: list[str], understood) -> bool:
    text = (ROOT / "Dockerfile").read_text()
    if words[0] == "build":
        after = dict(zip(words, words[1:], strict=False))
        arguments = [value.split("=")[0] for word, value in after.items() if word == "--build-arg"]
        stage = after.get("--target")
        return (stage is None or f" AS {stage}\n" in text) and all(
            f"ARG {name}" in text for name in arguments
        )
    return words[0] == "run" and (words[-1] in COMMANDS or words[-1].startswith("quicksviewer:"))


def make(words: list[str], understood) -> bool:
    return all(f"\n{word}:" in (ROOT / "Makefile").read_text() for word in words)


PROGRAMS = {
    "python": python,
    "bash": bash,
    "quicksviewer": word_of_ours,
    "pip": pip,
    "srun": srun,
    "sbatch": sbatch,
    "docker": docker,
    "make": make,
}
"""Program -> whether it would take these words, and what they name is there."""
COMMAND_LINES = {f"{block.where} {shlex.join(words)}": words for block in BLOCKS for words in commands(block)}


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_is_one_that_its_program_takes(line, understood, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = COMMAND_LINES[line]
    count = next(number for number, word in enumerate(words) if not re.match(r"\w+=", word))
    for name, value in (word.split("=", 1) for word in words[:count]):
        assert is_read(name), f"nothing here reads the variable {name}"
        if name == "RECIPE":
            words = [*words, "--recipe", value]
    assert PROGRAMS[Path(words[count]).name](words[count + 1 :], understood)


def is_read(variable: str) -> bool:
    """Whether a script or module of ours speaks of a variable of the environment."""
    files = [*ROOT.glob("scripts/*"), *ROOT.glob("quicksviewer/**/*.py"), *ROOT.glob("tests/**/*.py")]
    files += ROOT.glob("compat/**/*.py")
    return any(variable in path.read_text(encoding="utf-8") for path in files if path.is_file())


def test_a_command_that_no_program_takes_is_found(understood, capsys):
    assert not word_of_ours(["eval", "world", "--modelpath", "x"], understood)
    assert not word_of_ours(["evil", "world", "--model-path", "x"], understood)
    assert not word_of_ours(["zoo", "lode"], understood)
    with pytest.raises(ValueError, match="did you mean 'stage'"):
        bash(["scripts/stage1.sh", "--stag", "x"], understood)
    assert not bash(["scripts/setup.sh", "tset"], understood)
    assert not pip(["install", "quicksviewer[sevre]"], understood)
    assert not docker(["build", "--target", "gppu"], understood)


def test_many_commands_were_found():
    programs = {Path(w).name for words in COMMAND_LINES.values() for w in words if Path(w).name in PROGRAMS}
    assert len(COMMAND_LINES) > 100 and programs >= set(PROGRAMS)


# --- snippets ---


def names_exist(code: str) -> bool:
    """Whether code parses and what it imports of ours is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("quicksviewer"):
            found = import_module(node.module)
            missing = [n.name for n in node.names if n.name != "*" and not hasattr(found, n.name)]
            assert not missing, f"{node.module} has no {missing}"
    return True


def of_kind(kind: str) -> list:
    return [pytest.param(block.text, id=block.where) for block in BLOCKS if block.kind == kind]


@pytest.mark.parametrize("code", of_kind("python"))
def test_what_python_imports_is_there(code):
    assert names_exist(code)


@pytest.mark.parametrize("text", of_kind("json"))
def test_rows_are_rows(text):
    rows = re.sub(r"}\s*{", "},{", text)
    for row in json.loads(f"[{rows}]"):
        assert parse_sample(row, "page")


@pytest.mark.parametrize("text", of_kind("yaml"))
def test_yaml_is_yaml(text):
    assert yaml.safe_load(text)


@pytest.mark.parametrize("code", [case for case in of_kind("python") if case.id.startswith("README.md")])
def test_python_of_the_readme_runs(code, tiny, tmp_path, monkeypatch):
    loaded = fresh(tiny)
    folder, held_out = tmp_path / "output/quickstart/stage3", tmp_path / "output/world/data/videos/held_out"
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    held_out.mkdir(parents=True)
    shutil.copy(videos(tiny)[0], held_out / "00000.mp4")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


# --- links ---


def links(page: Path) -> Iterator[str]:
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target and not target.startswith(("http://", "https://", "mailto:")):
                yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{page.name} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", to.read_text(encoding="utf-8"), flags=re.M)
            known = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in known, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", ["README.md", "AGENTS.md"])
def test_files_that_a_page_names_are_there(page):
    named = re.findall(
        r"`((?:quicksviewer|scripts|configs|docs|tests|benchmarks)/[\w/.]+\.\w+)`", (ROOT / page).read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
