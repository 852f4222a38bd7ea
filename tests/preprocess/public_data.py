"""What the miniatures of public data sets are made of: real pictures and films, writers of their formats."""

import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from quicksviewer.synthetic.video import write_video

CLIP_SECONDS, CLIP_FPS, CLIP_SIDE = 3, 4, 32


@dataclass
class Stock:
    """Media that all miniatures are made of."""

    clip: Path
    jpeg: bytes
    png: bytes
    gif: bytes

    def clips(self, folder: Path, *names: str) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.clip, folder / name)


@dataclass
class Case:
    """A data set on the disk, and what must come of it."""

    words: list[str]
    """Arguments of the command, but for the output."""
    samples: dict[str, list[dict]]
    """Output file -> samples, without `source`."""
    skipped: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    used: int = 0


def picture(shade: int, kind: str) -> bytes:
    data, pixels = io.BytesIO(), np.full((24, 40, 3), shade, np.uint8)
    pixels[:, :20, 0] = 250 - shade
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def moving_gif() -> bytes:
    """Three pictures of 31x25, shown for 100, 200 and 300 ms."""
    frames = [Image.fromarray(np.full((25, 31, 3), shade, np.uint8)) for shade in (30, 120, 220)]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=[100, 200, 300])
    return data.getvalue()


def make_stock(folder: Path) -> Stock:
    second = np.arange(CLIP_SECONDS * CLIP_FPS) // CLIP_FPS
    frames = np.broadcast_to(
        (40 + 80 * second)[:, None, None, None], (len(second), CLIP_SIDE, CLIP_SIDE, 3)
    ).astype(np.uint8)
    write_video(folder / "clip.mp4", frames, CLIP_FPS)
    return Stock(folder / "clip.mp4", picture(30, "JPEG"), picture(90, "PNG"), moving_gif())


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def document(items: list[bytes | str]) -> dict:
    """A web document of pictures (bytes) and texts."""
    urls = [f"https://example.org/a/{i}.jpg" if isinstance(x, bytes) else None for i, x in enumerate(items)]
    return {
        "images": urls,
        "metadata": json.dumps([url and {"src": url, "alt_text": ""} for url in urls]),
        "general_metadata": json.dumps({"url": "https://example.org/a"}),
        "texts": [None if isinstance(item, bytes) else item for item in items],
        "image_bytes": [item if isinstance(item, bytes) else None for item in items],
    }


def turns(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


CONVERSATION = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema, group: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder but the reports, which name the folder itself."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not path.name.endswith(".report.json")
    }


def onevision_rows(folder: Path, stock: Stock, count: int, group: int = 3) -> Path:
    """LLaVA-OneVision rows in one parquet file; every fifth picture is damaged."""
    schema = pa.schema([("id", pa.string()), ("image", PICTURE), ("conversations", CONVERSATION)])
    data = [stock.png, stock.jpeg, stock.jpeg, stock.png, stock.jpeg[:150]]
    rows = [
        {
            "id": str(i),
            "image": {"bytes": data[i % 5], "path": None},
            "conversations": turns(f"<image>{i}?", "ü"),
        }
        for i in range(count)
    ]
    write_parquet(folder / "rows.parquet", rows, schema, group)
    return folder / "rows.parquet"
