"""NExT-QA (CVPR 2021): why, how, when, where and how many; with five options, and open.

Published as `test.csv` (or a parquet file of the same columns in a folder MC or OE), the mapping
`map_vid_vidorID.json` from the number of a video to its path, and the videos in `NExTVideo/`. Open questions
have up to two right answers; here a judge compares them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from quicksviewer.eval import choice
from quicksviewer.eval.files import find_file, find_folder, find_video, letter_of, read_rows
from quicksviewer.eval.judge_prompts import QA, QA_METRICS
from quicksviewer.eval.task import Benchmark, Item

CATEGORY = {"C": "causal", "T": "temporal", "D": "descriptive"}
"""First letter of a question's type -> its category."""


def _rows(data: Path, videos: Path | None, setting: str):
    """(row, item's shared fields) of a split's file. The numbers of questions repeat from video to video."""
    names = ("test.csv", "mc.csv", "val.csv") if setting == "MC" else ("test.csv", "val.csv")
    nested = (f"{setting}/test*.parquet", *(f"{setting}/{name}" for name in names))
    path = find_file(data, *nested, *names, "test*.parquet")
    folder = videos or find_folder(data, "NExTVideo", "videos")
    known = next(
        (p for p in (data / "map_vid_vidorID.json", path.parent / "map_vid_vidorID.json") if p.is_file()),
        None,
    )
    paths = json.loads(known.read_text(encoding="utf-8")) if known else {}
    for row in read_rows(path):
        name, question, kind, number = row.need("video", "question", "type", "qid")
        name = str(name)
        yield (
            row,
            {
                "uid": f"{name}-{number}",
                "video": find_video(folder, *filter(None, (paths.get(name), name))),
                "questions": (_sentence(str(question)),),
                "kind": kind,
                "groups": {"category": CATEGORY.get(kind[0], kind)},
                "where": row.where,
            },
        )


def _sentence(question: str) -> str:
    """With the question mark that the files leave out."""
    return question if question.endswith("?") else f"{question}?"


def choices(data: Path, videos: Path | None = None) -> Iterator[Item]:
    """Questions with five options, whose answer is a number from 0 to 4."""
    for row, shared in _rows(data, videos, "MC"):
        options = row.need("a0", "a1", "a2", "a3", "a4")
        letter = letter_of(row, row.need("answer")[0], options)
        yield Item(answer=letter, options=tuple(options), chance=1 / len(options), **shared)


def open_questions(data: Path, videos: Path | None = None) -> Iterator[Item]:
    """Questions without options, with one or two right answers."""
    for row, shared in _rows(data, videos, "OE"):
        other = row.get("additional_ref_answer")
        references = (str(other),) if other else ()
        yield Item(answer=str(row.need("answer")[0]), references=references, **shared)


CHOICE = Benchmark(
    samples=choices,
    prompt=choice.PROMPT,
    score=choice.score_letter,
    metrics=choice.METRICS,
    max_new_tokens=choice.MAX_NEW_TOKENS,
)
OPEN = Benchmark(
    samples=open_questions,
    prompt="{question}\nAnswer with a short phrase.",
    judges=(QA,),
    metrics=QA_METRICS,
    max_new_tokens=32,
)
