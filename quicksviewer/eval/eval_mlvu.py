"""MLVU (arXiv 2406.04264), its seven multiple-choice tasks about videos of three minutes to two hours.

Published as a folder of `json/N_TASK.json`, lists of {video, duration, question, candidates, answer,
question_type}, and `video/N_TASK/`. The paper's M-Avg is the mean over tasks, here `macro`.
"""

from collections.abc import Iterator
from pathlib import Path

from quicksviewer.eval import choice
from quicksviewer.eval.files import find_file, find_folder, find_video, letter_of_text, read_rows
from quicksviewer.eval.task import Benchmark, Item

TASKS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""Kind -> name of its file and of the folder of its videos."""


def samples(data: Path, videos: Path | None = None) -> Iterator[Item]:
    """Items of all seven tasks. ValueError where one of them has no file."""
    root = videos or find_folder(data, "video", "videos")
    for kind, name in TASKS.items():
        for number, row in enumerate(read_rows(find_file(data, f"json/{name}.json", f"{name}.json"))):
            video, question, options, answer = row.need("video", "question", "candidates", "answer")
            yield Item(
                uid=f"{kind}-{number}",
                video=find_video(root / name, video),
                questions=(question,),
                answer=letter_of_text(row, answer, options),
                options=tuple(map(str, options)),
                kind=kind,
                chance=1 / len(options),
                where=row.where,
            )


MLVU = Benchmark(
    samples=samples,
    prompt=choice.PROMPT,
    score=choice.score_letter,
    metrics=choice.METRICS,
    max_new_tokens=choice.MAX_NEW_TOKENS,
)
