"""M4-Instruct, the multi-image part of LLaVA-OneVision: `m4_instruct_annotations.json` and its pictures."""

import sys
from collections.abc import Iterator

from quicksviewer.preprocess.converter import Converter, Made, Row
from quicksviewer.preprocess.schema import IDENTITY, TEXT, TURNS, either, many, maybe


def convert(row: Row) -> Iterator[Made]:
    yield row.sample("conversations", image=row["image"], conversations=row["conversations"])


CONVERTER = Converter(
    name="llavaov_multi_images",
    reads="M4-Instruct-Data: m4_instruct_annotations.json",
    schema={"id": maybe(IDENTITY), "image": either(many(TEXT), TEXT), "conversations": TURNS},
    convert=convert,
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
