"""LLaVA-ReCap-558K: pictures with long descriptions. The one instruction of all rows becomes one of ours."""

import sys
from collections.abc import Iterator

from quicksviewer.constants import IMAGE_MARK
from quicksviewer.preprocess.converter import Blob, Converter, Made, Row, Skipped
from quicksviewer.preprocess.schema import IDENTITY, PICTURE, TURNS
from quicksviewer.preprocess.template import describe


def convert(row: Row) -> Iterator[Made | Skipped]:
    first, *rest = row["conversations"] or [None]
    if not row["image"]["bytes"] or not first or IMAGE_MARK not in first["value"]:
        yield Skipped("content", f"no picture, or no {IMAGE_MARK} in the first turn")
        return
    question = f"{IMAGE_MARK}\n{describe('image', row.uid)}"
    turns = [{**first, "value": question}, *rest]
    yield row.sample("conversations", image=Blob(row["image"]["bytes"]), conversations=turns)


CONVERTER = Converter(
    name="llavarecap558",
    reads="LLaVA-ReCap-558K: parquet",
    schema={"id": IDENTITY, "image": PICTURE, "conversations": TURNS},
    convert=convert,
    media="rows",
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
