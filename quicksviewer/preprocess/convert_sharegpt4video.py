"""ShareGPT4Video: `sharegpt4video_40k.jsonl`. The caption with index -1 tells the whole video and is used."""

import sys
from collections.abc import Iterator

from quicksviewer.preprocess.converter import Converter, Made, Row, Skipped
from quicksviewer.preprocess.schema import IDENTITY, TEXT, many, record

WHOLE = "-1"
"""Index of the caption of the whole video; the others are of its parts."""


def convert(row: Row) -> Iterator[Made | Skipped]:
    captions = [caption["content"] for caption in row["captions"] if str(caption["idx"]) == WHOLE]
    if not captions:
        yield Skipped("content", f"no caption with idx {WHOLE}")
        return
    yield row.sample("caption", video=row["video_path"], caption=captions[0])


CONVERTER = Converter(
    name="sharegpt4video",
    reads="ShareGPT4Video: sharegpt4video_40k.jsonl and videos",
    schema={
        "video_id": TEXT,
        "video_path": TEXT,
        "captions": many(record({"idx": IDENTITY, "content": TEXT})),
    },
    convert=convert,
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
