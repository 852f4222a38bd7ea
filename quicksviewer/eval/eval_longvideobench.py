"""LongVideoBench (arXiv 2407.15754): questions about videos of up to an hour that refer to a moment of them.

Published as `lvb_val.json` (or the parquet file of the validation split), `videos/` and `subtitles/`.
Subtitles are timed by the video that a clip was cut from. The test split has no answers and is not read.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval import choice
from quicksviewer.eval.files import Row, find_file, find_folder, find_video, letter_of, read_rows
from quicksviewer.eval.subtitles import Line, read_json_subtitles
from quicksviewer.eval.task import Benchmark, Item

GROUPS = ("question_category", "level", "topic_category")


def samples(data: Path, videos: Path | None = None, with_subtitles: bool = False) -> Iterator[Item]:
    """Items of the validation split; kind is the class of length, in seconds."""
    path = find_file(data, "lvb_val.json", "validation-*.parquet")
    folder = videos or find_folder(data, "videos")
    for row in read_rows(path):
        uid, video, question, place, kind = row.need(
            "id", "video_path", "question", "correct_choice", "duration_group"
        )
        options = _options(row)
        yield Item(
            uid=uid,
            video=find_video(folder, video),
            questions=(question,),
            answer=letter_of(row, place, options),
            options=options,
            kind=str(kind),
            groups={key: str(row[key]) for key in GROUPS if row.get(key)},
            chance=1 / len(options),
            where=row.where,
            subtitles=_subtitles(row, data) if with_subtitles else (),
        )


def _options(row: Row) -> tuple[str, ...]:
    """Of the list in the JSON file, or of the columns option0 to option4, where N/A fills up."""
    given = row.get("candidates") or [row.get(f"option{n}") for n in range(5)]
    options = tuple(str(option) for option in given if option not in (None, "", "N/A"))
    if len(options) < 2:
        raise SampleError(row.where, f"expected candidates or option0 to option4, got {options}")
    return options


def _subtitles(row: Row, data: Path) -> tuple[Line, ...]:
    name, offset, duration = row.need("subtitle_path", "starting_timestamp_for_subtitles", "duration")
    path = find_folder(data, "subtitles") / name
    return read_json_subtitles(path, float(offset), float(duration))


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
