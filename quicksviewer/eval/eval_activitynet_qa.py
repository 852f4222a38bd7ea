"""ActivityNet-QA (arXiv 1906.02467): 8000 open questions about 800 web videos, scored by a judge.

Published as `test_q.json`, a list of {video_name, question, question_id}, and `test_a.json`, a list of
{question_id, answer, type}; the video of a name is `v_NAME.mp4` or `NAME.mp4`.
"""

from collections.abc import Iterator
from pathlib import Path

from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval.files import find_file, find_folder, find_video, read_rows
from quicksviewer.eval.judge_prompts import QA, QA_METRICS
from quicksviewer.eval.task import Benchmark, Item

KINDS = ("motion", "space", "time", "yes_no", "colour", "object", "location", "number", "other")
"""Names of the types 0 to 8."""


def samples(data: Path, videos: Path | None = None) -> Iterator[Item]:
    """All items. SampleError for a question without an answer."""
    questions = find_file(data, "test_q.json", "**/test_q.json")
    folder = videos or find_folder(data, "videos", "all_test", "test")
    answers = {row.need("question_id")[0]: row for row in read_rows(questions.with_name("test_a.json"))}
    for row in read_rows(questions):
        name, question, uid = row.need("video_name", "question", "question_id")
        if uid not in answers:
            raise SampleError(row.where, f"{uid!r} has no answer in {questions.with_name('test_a.json')}")
        answer, kind = answers[uid].need("answer", "type")
        if not str(kind).isdigit() or int(kind) >= len(KINDS):
            raise SampleError(answers[uid].where, f"type must lie in 0..{len(KINDS) - 1}, got {kind!r}")
        yield Item(
            uid=uid,
            video=find_video(folder, f"v_{name}", name),
            questions=(f"{question.rstrip('?')}?",),
            answer=str(answer),
            kind=KINDS[int(kind)],
            where=row.where,
        )


ACTIVITYNET_QA = Benchmark(
    samples=samples,
    prompt="{question}\nAnswer with yes or no, or with a short phrase.",
    judges=(QA,),
    metrics=QA_METRICS,
    max_new_tokens=32,
)
