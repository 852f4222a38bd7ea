"""LLaVA-OneVision-Data, the single-image stage: one picture or none, and a conversation."""

import sys
from collections.abc import Iterator

from quicksviewer.preprocess.converter import Blob, Converter, Made, Row
from quicksviewer.preprocess.schema import IDENTITY, PICTURE, TEXT, TURNS, maybe


def convert(row: Row) -> Iterator[Made]:
    data = (row["image"] or {}).get("bytes")
    yield row.sample("conversations", image=Blob(data) if data else None, conversations=row["conversations"])


CONVERTER = Converter(
    name="llavaov_single_image",
    reads="LLaVA-OneVision-Data: parquet",
    schema={"id": IDENTITY, "image": maybe(PICTURE), "conversations": TURNS, "data_source": maybe(TEXT)},
    convert=convert,
    media="rows",
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
