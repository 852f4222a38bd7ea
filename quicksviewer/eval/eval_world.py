"""The embedded world: held-out questions about held-out videos, by kind.

A row of held_out.jsonl gives video, question, answer, and all answers that there could have been (their
number is chance). An answer counts when it is the expected one, white space and case aside.
"""

from collections.abc import Iterator
from pathlib import Path

from quicksviewer.data.mixture import JsonlIndex
from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval.task import Item

DEFAULT_DATA = "output/world/data"
MAX_NEW_TOKENS = 8
KEYS = ("uid", "video", "question", "answer", "answers", "kind")
"""What a row must say."""


def samples(data: str) -> Iterator[Item]:
    """Items of a data folder. ValueError or SampleError where the file is not what it should be."""
    rows = JsonlIndex(Path(data) / "held_out.jsonl")
    if not len(rows):
        raise ValueError(f"{rows.path} holds no questions")
    for index in range(len(rows)):
        row, where = rows[index]
        if missing := [key for key in KEYS if not row.get(key)]:
            raise SampleError(where, f"{', '.join(missing)} missing or empty")
        yield Item(
            uid=row["uid"],
            video=str(Path(data) / row["video"]),
            prompt=row["question"],
            answer=row["answer"],
            kind=row["kind"],
            chance=1 / len(row["answers"]),
            where=where,
        )


def score(item: Item, answer: str) -> float:
    """1 for the expected answer, else 0; an empty answer is wrong."""
    return float(answer.strip().casefold() == item.answer.casefold())
