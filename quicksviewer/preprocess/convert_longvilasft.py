"""LongVILA SFT: parquet rows, and videos that are known by the YouTube id in the JSON file beside each."""

import re
import sys
from collections.abc import Iterator

from quicksviewer.preprocess.converter import Converter, Found, Made, Row
from quicksviewer.preprocess.schema import TEXT, TURNS

MARK = re.compile(r"\s*<video>")


def convert(row: Row) -> Iterator[Made]:
    """The mark stands behind the first question; without it the video goes before it, as everywhere else."""
    first, *rest = row["conversations"] or [{"from": "human", "value": ""}]
    turns = [{**first, "value": MARK.sub("", first["value"], count=1)}, *rest]
    yield row.sample("conversations", video=Found(row["id"]), conversations=turns)


CONVERTER = Converter(
    name="longvilasft",
    reads="LongVILA SFT: parquet and videos with JSON files beside them",
    schema={"id": TEXT, "video": TEXT, "conversations": TURNS},
    convert=convert,
    index="youtube",
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
