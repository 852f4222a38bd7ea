"""32 of 300 frames of a video from a store: time, bytes read, size on the disk (P8).

    python benchmarks/frame_store.py [--videos 4] [--repeats 7]

The peer is the published reader: a text row, json, base64 and PIL over all frames of the row. Both stores
hold the same JPEG bytes, and both sides give the same pixels, which is asserted first. Prints one JSON.
"""

import argparse
import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from common import interleaved, ratio_row
from PIL import Image, ImageFilter

from quicksviewer.utils.data_util import MediaLimits, TSVReader, TSVWriter
from quicksviewer.utils.frame_store import FrameStore, FrameStoreWriter

FRAMES, SAMPLED, SIDE = 300, 32, 384
INDICES = [int((i + 0.5) * FRAMES / SAMPLED) for i in range(SAMPLED)]


def jpegs(seed: int) -> list[bytes]:
    """Frames with texture at the size of training, as JPEG: a window that moves over a large soft picture."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
    soft = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5))
    encoded = []
    for second in range(FRAMES):
        buffer = io.BytesIO()
        at = second, SIDE - second
        soft.crop((*at, at[0] + SIDE, at[1] + SIDE)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


class PublishedReader:
    """The row as text, all frames decoded, then those that are wanted."""

    def __init__(self, folder: Path):
        self.file = open(folder / "imgs.tsv", encoding="ascii")  # noqa: SIM115
        self.offsets = [int(line) for line in (folder / "imgs.lineidx").read_text().split()]
        self.rows = json.loads((folder / "fname2idx.json").read_text())
        self.read = 0

    def frames(self, name: str) -> np.ndarray:
        self.file.seek(self.offsets[self.rows[name]])
        row = self.file.readline()
        self.read += len(row)
        letters = json.loads(row.split("\t")[1])
        pictures = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in letters]
        return np.stack([np.asarray(pictures[index]) for index in INDICES])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), args.videos, args.repeats)))
    return 0


def measure(root: Path, videos: int, repeats: int) -> dict:
    with TSVWriter(root / "tsv") as tsv, FrameStoreWriter(root / "clips.qvf") as store:
        for number in range(videos):
            frames = jpegs(number)
            tsv.append(str(number), frames)
            store.append(str(number), frames, fps=1.0)
    published, reader, ours = (
        PublishedReader(root / "tsv"),
        TSVReader(root / "tsv"),
        FrameStore(root / "clips.qvf"),
    )
    in_child = FrameStore(root / "clips.qvf", MediaLimits(isolation="process"))
    names = [str(number) for number in range(videos)]
    for name in names:
        expected = published.frames(name)
        for side in (reader, ours, in_child):
            assert np.array_equal(side.frames(name, INDICES), expected)
    row_bytes = published.read / videos
    sampled_bytes = np.mean([len(ours.encoded(name, index)) for name in names for index in INDICES]) * SAMPLED
    sides = {
        "published": lambda: [published.frames(name) for name in names],
        "our_tsv": lambda: [reader.frames(name, INDICES) for name in names],
        "ours": lambda: [ours.frames(name, INDICES) for name in names],
        "ours_in_child": lambda: [in_child.frames(name, INDICES) for name in names],
    }
    times = interleaved(sides, repeats)
    size = {name: sum(path.stat().st_size for path in places) for name, places in {
        "published": list((root / "tsv").iterdir()), "ours": [root / "clips.qvf"]}.items()}  # fmt: skip
    told = {
        "videos": videos,
        "frames": FRAMES,
        "sampled": SAMPLED,
        "jpeg_bytes": round(sampled_bytes / SAMPLED),
    }
    told |= {
        name: ratio_row(times["published"], times[name], 5.0) for name in ("our_tsv", "ours", "ours_in_child")
    }
    told["bytes_read_share"] = round(sampled_bytes / row_bytes, 4)
    told["size_share"] = round(size["ours"] / size["published"], 4)
    told["pass"] = told["ours"]["pass"] and told["bytes_read_share"] <= 0.2 and told["size_share"] <= 0.76
    return told


if __name__ == "__main__":
    raise SystemExit(main())
