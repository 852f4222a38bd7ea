"""FineVideo: films with a description, a storyline, its climax, and questions.

`finevideo` reads the public parquet files, which have the films inside. `finevideo_filtered` reads
`finevideo_filtered.jsonl`, rows that were written from them before, beside a folder of films. Both give two
files: `_caption_storyline` and `_qa_climax`.
"""

import sys
from collections.abc import Iterator
from pathlib import PurePosixPath

from quicksviewer.preprocess.converter import Blob, Converter, Found, Made, Row, Skipped
from quicksviewer.preprocess.schema import BYTES, TEXT, TURNS, many, maybe, record
from quicksviewer.preprocess.template import QUESTIONS

TOLD, ASKED = "_caption_storyline", "_qa_climax"
ANSWERED = record({"question": TEXT, "answer": TEXT})
STORY = record(
    {
        "description": maybe(TEXT),
        "climax": maybe(record({"description": maybe(TEXT), "timestamp": maybe(TEXT)})),
    }
)
CONTENT = record({"description": maybe(TEXT), "storylines": maybe(STORY), "qAndA": maybe(many(ANSWERED))})


def convert(row: Row) -> Iterator[Made | Skipped]:
    content, video = row["json"]["content_metadata"], Blob(row["mp4"])
    story = content.get("storylines") or {}
    climax = story.get("climax") or {}
    if content.get("description"):
        yield row.sample(
            "caption", video=video, caption=content["description"], tail="_caption", parts=(TOLD,)
        )
    if story.get("description"):
        rest = dict(video=video, tail="_storyline", parts=(TOLD,))
        yield row.asked(QUESTIONS["storyline"], story["description"], **rest)
    for place, pair in enumerate(content.get("qAndA") or ()):
        yield row.asked(pair["question"], pair["answer"], video=video, tail=f"_qa{place}", parts=(ASKED,))
    if climax.get("description") and climax.get("timestamp"):
        answer = f"{climax['timestamp']}: {climax['description']}"
        yield row.asked(QUESTIONS["climax"], answer, video=video, tail="_climax", parts=(ASKED,))


OPENINGS = {"Please locate the timestamp": ASKED}
"""How the first question of a row begins -> where it belongs."""


def convert_filtered(row: Row) -> Iterator[Made]:
    turns = row["conversations"]
    opening = turns[0]["value"].replace("<video>", "").strip() if turns else ""
    asked = "qAndA" in row["uid"] or any(opening.startswith(words) for words in OPENINGS)
    video = Found(PurePosixPath(row["video"]).name)
    part = ASKED if asked else TOLD
    yield row.sample("conversations", video=video, conversations=turns, parts=(part,))


CONVERTER = Converter(
    name="finevideo",
    reads="FineVideo: parquet",
    schema={"mp4": BYTES, "json": record({"content_metadata": CONTENT})},
    convert=convert,
    media="rows",
    parts=(TOLD, ASKED),
)
FILTERED = Converter(
    name="finevideo_filtered",
    reads="FineVideo: finevideo_filtered.jsonl and films",
    schema={"uid": TEXT, "video": TEXT, "conversations": TURNS},
    convert=convert_filtered,
    index="name",
    parts=(TOLD, ASKED),
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER, FILTERED))
