"""What a benchmark hands to the loop: items, how they are asked, how an answer is scored."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from quicksviewer.eval.letters import LETTERS
from quicksviewer.eval.subtitles import Line, lines_on_screen

FIELDS = ("question", "options", "subtitles")
"""What a prompt may ask for; other braces are text."""
FIELD = re.compile(rf"\{{({'|'.join(FIELDS)})\}}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """Questions about one clip that are scored together; nearly always one.

    `answer`: a text, or a letter where there are `options`; `chance`: the score of a blind guess, None where
    nobody knows it; `where`: file and row, for errors; `groups`: further ways to break the result down, name
    -> value; `references`: other right answers.
    """

    uid: str
    video: str
    questions: tuple[str, ...]
    answer: str
    kind: str
    where: str
    chance: float | None = None
    options: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    subtitles: tuple[Line, ...] = ()

    @property
    def clip(self) -> str:
        """The name of what is looked at: the video, and its part where that is not the whole."""
        if self.start is None and self.end is None:
            return self.video
        return f"{self.video} [{self.start or 0} s, {'end' if self.end is None else f'{self.end} s'})"


@dataclass(frozen=True)
class Score:
    """Metric -> value, and what the answers were read as; None: as no answer."""

    values: dict[str, float]
    read: str | None


@dataclass(frozen=True)
class JudgePrompt:
    """One question to a judge. `system` and `user` are texts with {question}, {reference}, {answer}, ...;
    `reads`: key of the JSON that it replies -> metric."""

    version: str
    system: str
    user: str
    reads: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A task. `samples(data, videos)`: the folder of the annotations, and that of the videos where it is
    another; ValueError or SampleError where a file is not what it should be. `metrics`: name -> its best
    value, the headline first. Scored by `score(item, answers)` or by `judges`."""

    samples: Callable[[Path, Path | None], Iterable[Item]]
    prompt: str
    metrics: Mapping[str, float]
    max_new_tokens: int
    score: Callable[[Item, Sequence[str]], Score] | None = None
    judges: tuple[JudgePrompt, ...] = ()
    data: str | None = None
    """Folder of the annotations when none is named."""

    def __post_init__(self):
        if (self.score is None) != bool(self.judges):
            raise ValueError("a task is scored by a function or by judges")

    @property
    def headline(self) -> str:
        return next(iter(self.metrics))


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` of the items, from all over them, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[int((i + 0.5) * len(items) / limit)] for i in range(limit)]


def write_prompts(template: str, item: Item, times: Sequence[float]) -> list[str]:
    """The text of each question of an item, whose frames are those at `times` (seconds)."""
    listed = [f"{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=False)]
    said = lines_on_screen(item.subtitles, times)
    texts = {"options": "\n".join(listed), "subtitles": f"Subtitles:\n{said}\n\n" if said else ""}
    return [
        FIELD.sub(lambda found, texts=texts | {"question": question}: texts[found[1]], template).strip()
        for question in item.questions
    ]


def read_prompt(path: Path, items: Iterable[Item]) -> str:
    """The prompt of a file. ValueError where it leaves out the question, or options that items have, or where
    a name in braces is nearly that of a field."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"\{([^{}\n]{1,24})\}", text):
        near = get_close_matches(found[1].strip().casefold(), FIELDS, n=1, cutoff=0.75)
        if near and found[1] not in FIELDS:
            line = text.count("\n", 0, found.start()) + 1
            raise ValueError(f"{path}:{line}: {found[0]} is no field; did you mean {{{near[0]}}}?")
    needed = ["question", *(["options"] if any(item.options for item in items) else [])]
    if missing := [f"{{{name}}}" for name in needed if f"{{{name}}}" not in text]:
        raise ValueError(
            f"{path}: expected {' and '.join(missing)} in the prompt: without it nothing is asked"
        )
    return text


def exact(item: Item, answers: Sequence[str]) -> Score:
    """1 for the expected answer, white space and case aside, else 0."""
    given = answers[0].strip()
    return Score({"accuracy": float(given.casefold() == item.answer.casefold())}, given or None)
