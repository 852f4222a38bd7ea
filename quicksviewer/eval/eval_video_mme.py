"""Video-MME (arXiv 2405.21075): 900 videos of three lengths, three questions with four options about each.

Published as a folder of `videomme/test-00000-of-00001.parquet`, `data/VIDEO.mp4` and `subtitle/VIDEO.srt`.
With subtitles, the lines that are on screen at the moments of the frames stand before the question.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval import choice
from quicksviewer.eval.files import find_file, find_folder, find_video, read_rows
from quicksviewer.eval.letters import LETTERS
from quicksviewer.eval.subtitles import read_srt
from quicksviewer.eval.task import Benchmark, Item

KEYS = ("videoID", "question_id", "question", "options", "answer", "duration", "domain", "task_type")
GROUPS = ("domain", "sub_category", "task_type")


def samples(data: Path, videos: Path | None = None, with_subtitles: bool = False) -> Iterator[Item]:
    """All items; kind is the class of length. A video without subtitles has none in either setting."""
    path = find_file(data, "videomme/test-*.parquet", "test-*.parquet", "videomme.json")
    folder = videos or find_folder(data, "data", "video", "videos")
    subtitles = find_folder(data, "subtitle", "subtitles")
    for row in read_rows(path):
        name, uid, question, options, answer, kind, _, _ = row.need(*KEYS)
        if answer not in LETTERS[: len(options)]:
            raise SampleError(row.where, f"the answer {answer!r} is no letter of {len(options)} options")
        srt = subtitles / f"{name}.srt"
        yield Item(
            uid=uid,
            video=find_video(folder, name),
            questions=(question,),
            answer=answer,
            options=tuple(re.sub(r"^\s*\(?[A-J][.):]\s*", "", option).strip() for option in options),
            kind=kind,
            groups={key: row[key] for key in GROUPS if row.get(key)},
            chance=1 / len(options),
            where=row.where,
            subtitles=read_srt(srt) if with_subtitles and srt.is_file() else (),
        )


PLAIN, WITH_SUBTITLES = (
    Benchmark(
        samples=partial(samples, with_subtitles=with_subtitles),
        prompt=choice.PROMPT,
        score=choice.score_letter,
        metrics=choice.METRICS,
        max_new_tokens=choice.MAX_NEW_TOKENS,
    )
    for with_subtitles in (False, True)
)
