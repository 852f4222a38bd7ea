"""OBELICS: web documents of pictures and text. Pictures come as bytes of the row, or from the image cache.

The public parquet files have the addresses of the pictures and not the pictures. Copies that were filled have
a fifth column with their bytes, `image_bytes`, or bytes in `images` itself. Nothing is fetched: an address
without bytes is looked up in `--image_cache`, a folder that has each picture under the SHA-256 of its address
(`converter.cache_name`).

A document that begins with text or has fewer than two items is left out. A picture at its end is cut off: it
has nothing behind it to learn. `_gt2`, `_gt3`, `_gt4` get those of at least 4, 6 and 8 items.
"""

import sys
from collections.abc import Iterator
from typing import Any

from quicksviewer.preprocess.converter import Blob, Cached, Converter, Made, Row, Skipped
from quicksviewer.preprocess.schema import BYTES, PICTURE, TEXT, either, many, maybe

LONG = {"_gt2": 4, "_gt3": 6, "_gt4": 8}
"""Output file -> items that its documents have at least."""


def _picture(image: Any, data: bytes | None) -> Blob | Cached | None:
    if isinstance(image, dict):
        image, data = image["path"], data or image["bytes"]
    if isinstance(image, bytes):
        data = image
    if data:
        return Blob(data)
    return Cached(image) if image else None


def convert(row: Row) -> Iterator[Made | Skipped]:
    texts = row["texts"]
    data = row["image_bytes"] or [None] * len(row["images"])
    if not len(row["images"]) == len(data) == len(texts):
        yield Skipped("content", f"{len(row['images'])} images, {len(data)} bytes, {len(texts)} texts")
        return
    images = [_picture(*pair) for pair in zip(row["images"], data, strict=True)]
    while images and images[-1] is not None:
        yield Skipped("cut", f"item {len(images) - 1}: a picture at the end")
        images, texts = images[:-1], texts[:-1]
    if len(images) < 2 or images[0] is None:
        yield Skipped("content", "begins with text" if images and not images[0] else "fewer than 2 items")
        return
    parts = ("", *(part for part, items in LONG.items() if len(images) >= items))
    yield row.sample("interleave", image=images, caption=texts, parts=parts)


CONVERTER = Converter(
    name="obelics",
    reads="OBELICS: parquet",
    schema={
        "images": many(maybe(either(TEXT, BYTES, PICTURE))),
        "texts": many(maybe(TEXT)),
        "image_bytes": maybe(many(maybe(BYTES))),
    },
    convert=convert,
    media="rows",
    parts=("", *LONG),
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(CONVERTER))
