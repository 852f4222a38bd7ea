"""VideoChat2-IT: thirteen of its parts. All have rows of a video and QA: instruction, question, answer.

    python -m quicksviewer.preprocess.convert_videochat2it youcook2 --input train.json ...

Each question with its answer is a sample, as published. What is asked is the instruction, the question or
both, as the part uses them (PARTS). A YouCook2 sample is the raw video with the seconds of the step, which
the original annotations tell; no two steps share a name.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from quicksviewer.preprocess.converter import Converter, Found, Made, Row, Skipped
from quicksviewer.preprocess.schema import TEXT, many, maybe, record

ROWS = {"video": TEXT, "QA": many(record({"i": maybe(TEXT), "q": maybe(TEXT), "a": TEXT}))}
ANNOTATIONS = {"annotations": "youcookii_annotations_trainval.json"}
STEP = re.compile(r"_(\d+)$")
"""The number of the step at the end of a YouCook2 clip's name."""


@dataclass(frozen=True)
class Part:
    """How a part names its videos and asks its questions."""

    asks: str
    """Which of "i" and "q" are the question."""
    video: Callable[[str], str | Found]
    index: str | None = None
    gif: bool = False
    extras: tuple[tuple[str, str], ...] = ()


def _as_said(path: str) -> str:
    return path


def _by_name(path: str) -> Found:
    return Found(PurePosixPath(path).name)


def _by_stem(path: str) -> Found:
    return Found(PurePosixPath(path).name.removesuffix(".mp4"))


def _kinetics(path: str) -> Found:
    """The edition and the file name, of a path or of an address of the store where they were; the rest is
    laid out anew by everybody who has them."""
    parts = PurePosixPath(path).parts
    edition = next((part for part in parts if part in ("k400", "k600", "k700")), "")
    return Found(f"{edition}/{PurePosixPath(path).name}")


PARTS = {
    "textvr": Part("i", _as_said),
    "youcook2": Part("i", _as_said, "stem", extras=tuple(ANNOTATIONS.items())),
    "k710": Part("iq", _kinetics, "kinetics"),
    "nextqa": Part("iq", _by_name, "name"),
    "clevrer_qa": Part("iq", _by_name, "name"),
    "clevrer_mc": Part("iq", _by_name, "name"),
    "egoqa": Part("iq", _as_said),
    "tgif_frame_qa": Part("q", _as_said, gif=True),
    "tgif_transition_qa": Part("iq", _as_said, gif=True),
    "sharegptvideo_vqa": Part("iq", _by_stem, "stem"),
    "sharegptvideo_caption": Part("i", _by_stem, "stem"),
    "videochat2": Part("q", _as_said),
    "videochatgpt": Part("q", lambda path: Found(PurePosixPath(path).stem), "stem"),
}
"""Part -> how it is read."""


def convert(row: Row, part: Part) -> Iterator[Made | Skipped]:
    """The samples of a row of any part but YouCook2."""
    yield from _samples(row, part, {"video": part.video(row["video"])})


def convert_youcook2(row: Row, part: Part) -> Iterator[Made | Skipped]:
    """As `convert`; the video is SET/RECIPE/VIDEO/split_N.mp4, its seconds are in the annotations."""
    path = PurePosixPath(row["video"])
    step, video = STEP.search(path.stem), path.parent.name
    known = row.extras["annotations"].get("database", {}).get(video, {}).get("annotations", [])
    found = [one for one in known if step and one["id"] == int(step[1])]
    if len(found) != 1:
        yield Skipped("content", f"{row['video']}: {len(found)} steps of this name in the annotations")
        return
    start, end = found[0]["segment"]
    clip = {"video": Found(video), "start_sec": start, "end_sec": end}
    yield from _samples(row, part, clip)


def _samples(row: Row, part: Part, video: dict) -> Iterator[Made | Skipped]:
    for place, pair in enumerate(row["QA"]):
        question = " ".join(text for letter in part.asks if (text := (pair.get(letter) or "").strip()))
        yield row.asked(question, pair["a"], tail=f"_{place}", **video)


CONVERT = {"youcook2": convert_youcook2}
"""Part -> its own function, where it has one."""

CONVERTERS = tuple(
    Converter(
        name=f"videochat2it_{name}",
        reads=f"VideoChat2-IT: train.json of {name}, and videos",
        schema=ROWS,
        convert=partial(CONVERT.get(name, convert), part=part),
        index=part.index,
        gif=part.gif,
        extras=dict(part.extras),
    )
    for name, part in PARTS.items()
)

if __name__ == "__main__":
    from quicksviewer.preprocess.convert import script

    sys.exit(script(*CONVERTERS))
