"""The code blocks of a seed document: found in its markdown, given small local names, executed as they stand.

    document = Document("004_minimind_vlm.md")
    names = run(document, document.block("Quick start"), {"/path/to/clip": str(folder)})

A traceback shows the line of the document. Words are replaced as whole texts, and one that the document does
not have is an error, so that a table of replacements cannot outlive what it was written for.
"""

import sys
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT / "tests" / "data" / "seeds"
COMPAT = ROOT / "compat"


@dataclass(frozen=True)
class Block:
    """One fenced block: number of its first line of code, the headings above it, its language, its text."""

    line: int
    headings: tuple[str, ...]
    language: str
    code: str

    @property
    def title(self) -> str:
        return self.headings[-1] if self.headings else ""


class Document:
    """A seed document of tests/data/seeds and its blocks, in order."""

    def __init__(self, name: str):
        self.path = SEEDS / name
        self.blocks = tuple(find_blocks(self.path.read_text(encoding="utf-8")))

    def block(self, title: str, index: int = 0, language: str = "python") -> Block:
        """The index-th block under the heading `title`, or, where none is called so, that contains it."""
        spoken = [b for b in self.blocks if b.language == language]
        found = [b for b in spoken if b.title == title] or [b for b in spoken if title in b.title]
        if index >= len(found):
            known = ", ".join(dict.fromkeys(b.title for b in self.blocks))
            raise ValueError(f"{self.path.name} has {len(found)} blocks under {title!r}. Headings: {known}")
        return found[index]


def find_blocks(text: str) -> list[Block]:
    """All fenced blocks of a markdown text; a fence that is never closed is an error."""
    blocks, headings, lines, opened = [], {}, [], None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = line.lstrip().startswith("```")
        if opened is None and fence:
            opened, lines = (number + 1, line.strip().removeprefix("```").strip()), []
        elif opened is not None and fence:
            titles = tuple(title for _, title in sorted(headings.items()))
            blocks.append(Block(opened[0], titles, opened[1], "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            lines.append(line)
        elif line.startswith("#"):
            level = len(line) - len(line.lstrip("#"))
            headings = {depth: title for depth, title in headings.items() if depth < level}
            headings[level] = line[level:].strip()
    if opened is not None:
        raise ValueError(f"the block that begins at line {opened[0]} is never closed")
    return blocks


def replaced(document: Document, code: str, words: Mapping[str, str]) -> str:
    """`code` with each of `words` replaced, longest first. A word that no block holds is an error."""
    if strangers := [word for word in words if not any(word in b.code for b in document.blocks)]:
        raise ValueError(f"{document.path.name} does not say {strangers}")
    for word in sorted(words, key=len, reverse=True):
        code = code.replace(word, words[word])
    return code


def run(document: Document, block: Block, words: Mapping[str, str] | None = None, names: dict | None = None):
    """Execute a block in `names` (a fresh namespace without) and give the namespace back."""
    names = {"__name__": "seed"} if names is None else names
    code = "\n" * (block.line - 1) + replaced(document, block.code, words or {})
    exec(compile(code, str(document.path), "exec"), names)
    return names


@contextmanager
def compat_on_path():
    """Inside, the seeds' import names are those of compat/, as after `pip install ./compat`."""
    before, kept = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(COMPAT))
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - kept:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(f"{COMPAT}/"):
                del sys.modules[name]
