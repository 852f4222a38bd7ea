"""MovieChat-1K: a JSON file for each film, with its caption and questions about the whole of it.

Questions about single moments (`breakpoint`) have times in frames of another cut, and are left out.
"""

import sys
from collections.abc import Iterator

from quicksviewer.preprocess.converter import Converter, Found, Made, Row
from quicksviewer.preprocess.schema import TEXT, many, record


def convert(row: Row) -> Iterator[Made]:
    video = Found(row["_key"])
    yield row.sample("caption", video=video, caption=row["caption"], tail="_caption")
    for place, pair in enumerate(row["global"]):
        yield row.asked(pair["question"], pair["answer"], video=video, tail=f"_qa{place}")


CONVERTER = Converter(
    name="moviechat",
    reads="MovieChat-1K: a folder of JSON files and raw videos",
    schema={"_key": TEXT, "caption": TEXT, "global": many(record({"question": TEXT, "answer": TEXT}))},
    convert=convert,
    json_form="object",
    index="stem",
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
