"""WebVid: `train.json` of VideoChat2-IT (400,000 captions), or the CSV files of WebVid itself.

`contentUrl` of the CSV is never used: the videos are files below the media root, as
`PAGE_DIR/VIDEOID.mp4`, the way WebVid's own downloader lays them down.
"""

import sys
from collections.abc import Iterator

from quicksviewer.preprocess.converter import Converter, Made, Row
from quicksviewer.preprocess.schema import TEXT, many, maybe, record


def convert(row: Row) -> Iterator[Made]:
    for place, pair in enumerate(row["QA"]):
        yield row.asked(pair["i"], pair["a"], video=row["video"], tail=f"_{place}")


def convert_csv(row: Row) -> Iterator[Made]:
    path = f"{row['page_dir']}/{row['videoid']}.mp4"
    yield row.sample("caption", video=path, caption=row["name"])


CONVERTER = Converter(
    name="webvid400k",
    reads="WebVid in VideoChat2-IT: train.json and videos",
    schema={"video": TEXT, "QA": many(record({"i": TEXT, "a": TEXT, "q": maybe(TEXT)}))},
    convert=convert,
)
CSV = Converter(
    name="webvid_csv",
    reads="WebVid: results_*.csv and videos",
    schema={"videoid": TEXT, "name": TEXT, "page_dir": TEXT},
    convert=convert_csv,
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER, CSV))
