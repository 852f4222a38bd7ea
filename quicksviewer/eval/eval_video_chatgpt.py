"""The benchmark of Video-ChatGPT (arXiv 2306.05424): long answers about 500 videos, scored by a judge from 0
to 5.

Published as `generic_qa.json` and `temporal_qa.json`, lists of {Q, A, video_name}, `consistency_qa.json`, a
list of {Q1, Q2, A, video_name}, and `Test_Videos/`. Generic answers are judged three times: for correctness,
detail and context. The two questions of consistency mean the same and are asked each by itself.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from quicksviewer.eval import judge_prompts
from quicksviewer.eval.files import find_file, find_folder, find_video, read_rows
from quicksviewer.eval.task import Benchmark, Item, JudgePrompt

MAX_NEW_TOKENS = 512


def samples(
    data: Path, videos: Path | None = None, part: str = "generic", questions: tuple[str, ...] = ("Q",)
) -> Iterator[Item]:
    """Items of one of the three files."""
    folder = videos or find_folder(data, "Test_Videos", "videos")
    for number, row in enumerate(read_rows(find_file(data, f"{part}_qa.json", f"**/{part}_qa.json"))):
        answer, name, *asked = row.need("A", "video_name", *questions)
        yield Item(
            uid=f"{part}-{number}",
            video=find_video(folder, name),
            questions=tuple(asked),
            answer=answer,
            kind=part,
            where=row.where,
        )


def _benchmark(part: str, *judges: JudgePrompt, questions: tuple[str, ...] = ("Q",)) -> Benchmark:
    return Benchmark(
        samples=partial(samples, part=part, questions=questions),
        prompt="{question}",
        judges=judges,
        metrics={metric: 5.0 for judge in judges for metric in judge.reads.values()},
        max_new_tokens=MAX_NEW_TOKENS,
    )


GENERIC = _benchmark("generic", judge_prompts.CORRECTNESS, judge_prompts.DETAIL, judge_prompts.CONTEXT)
TEMPORAL = _benchmark("temporal", judge_prompts.TEMPORAL)
CONSISTENCY = _benchmark("consistency", judge_prompts.CONSISTENCY, questions=("Q1", "Q2"))
