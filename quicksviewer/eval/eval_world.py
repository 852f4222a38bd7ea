"""The embedded world: held-out questions about held-out videos, by kind.

A row of held_out.jsonl gives video, question, answer, and all answers that there could have been (their
number is chance). An answer counts when it is the expected one, white space and case aside.
"""

from collections.abc import Iterator
from pathlib import Path

from quicksviewer.data.mixture import JsonlIndex
from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval.task import Benchmark, Item, exact

KEYS = ("uid", "video", "question", "answer", "answers", "kind")
"""What a row must say."""


def samples(data: Path, videos: Path | None = None) -> Iterator[Item]:
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
            video=str(Path(videos or data) / row["video"]),
            questions=(row["question"],),
            answer=row["answer"],
            kind=row["kind"],
            chance=1 / len(row["answers"]),
            where=where,
        )


WORLD = Benchmark(
    samples=samples,
    prompt="{question}",
    score=exact,
    metrics={"accuracy": 1.0},
    max_new_tokens=8,
    data="output/world/data",
)
