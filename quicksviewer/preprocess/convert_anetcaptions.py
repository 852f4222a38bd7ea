"""ActivityNet Captions: `train.json`, an object of videos, each with the sentences that tell it in order."""

import sys
from collections.abc import Iterator

from quicksviewer.preprocess.converter import Converter, Found, Made, Row
from quicksviewer.preprocess.schema import NUMBER, TEXT, many


def convert(row: Row) -> Iterator[Made]:
    sentences = (sentence.strip() for sentence in row["sentences"])
    caption = " ".join(sentence for sentence in sentences if sentence)
    yield row.sample("caption", video=Found(row["_key"]), caption=caption, video_len=row["duration"])


CONVERTER = Converter(
    name="anetcaptions",
    reads="ActivityNet Captions: train.json and videos",
    schema={"_key": TEXT, "duration": NUMBER, "timestamps": many(many(NUMBER)), "sentences": many(TEXT)},
    convert=convert,
    json_form="mapping",
    index="stem",
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
