"""LLaVA-Pretrain: `blip_laion_cc_sbu_558k.json` (LCS), and `chat.json` of LLaVA-CC3M-Pretrain-595K."""

import sys
from collections.abc import Iterator

from quicksviewer.preprocess.converter import Converter, Made, Row
from quicksviewer.preprocess.schema import IDENTITY, TEXT, TURNS


def convert(row: Row) -> Iterator[Made]:
    yield row.sample("conversations", image=row["image"], conversations=row["conversations"])


CONVERTER = Converter(
    name="llavapretrain",
    reads="LLaVA-Pretrain: blip_laion_cc_sbu_558k.json, chat.json",
    schema={"id": IDENTITY, "image": TEXT, "conversations": TURNS},
    convert=convert,
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
