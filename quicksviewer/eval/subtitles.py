"""Subtitles: read from .srt and from the JSON of LongVideoBench, and which lines belong to the frames."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})"
SPAN = re.compile(rf"{TIME}\s*-->\s*{TIME}")
TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Line:
    """Words on screen from `start` to `end`, in seconds of the video."""

    start: float
    end: float
    text: str


def read_srt(path: Path) -> tuple[Line, ...]:
    """The lines of a SubRip file, without markup. ValueError where it has text and no times."""
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
    lines = []
    for block in re.split(r"\n\s*\n", text):
        if (span := SPAN.search(block)) is None:
            continue
        numbers = [int(part) for part in span.groups()]
        milli = [int(part.ljust(3, "0")) for part in (span[4], span[8])]
        start, end = (
            at[0] * 3600 + at[1] * 60 + at[2] + thousandths / 1000
            for at, thousandths in ((numbers[:3], milli[0]), (numbers[4:7], milli[1]))
        )
        if words := " ".join(TAG.sub("", block[span.end() :]).split()):
            lines.append(Line(start, end, words))
    if not lines and text.strip():
        raise ValueError(f"{path} has no line of the form 00:00:01,000 --> 00:00:02,000")
    return tuple(lines)


def read_json_subtitles(path: Path, offset: float, duration: float) -> tuple[Line, ...]:
    """Subtitles of LongVideoBench, in either of its two forms. `offset`: where the clip begins in the video
    that was transcribed; a line without an end lasts to the end of the clip. ValueError where a row is
    neither form."""
    lines = []
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8")), start=1):
        try:
            start, end, text = (
                (*row["timestamp"], row["text"])
                if "timestamp" in row
                else (_seconds(row["start"]), _seconds(row["end"]), row["line"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, row {number}: no subtitle with its time: {error!r}") from error
        end = duration + offset if end is None else end
        lines.append(Line(float(start) - offset, float(end) - offset, " ".join(str(text).split())))
    return tuple(lines)


def _seconds(clock: str) -> float:
    hours, minutes, seconds = str(clock).split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


def lines_on_screen(lines: Iterable[Line], times: Sequence[float]) -> str:
    """The lines that are on screen at one of the times, in order, what is repeated once."""
    shown = [line.text for line in lines if any(line.start <= t < line.end for t in times)]
    return "\n".join(text for at, text in enumerate(shown) if at == 0 or text != shown[at - 1])
