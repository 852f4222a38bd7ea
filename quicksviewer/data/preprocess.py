"""A row of a JSONL file becomes a Sample: turns of a conversation and the media that their marks stand for.

The keys of a row are those of KEYS; which of them go together is told by BUILDERS. A row that says more, or
whose marks and media do not agree, is refused with its place in the file; nothing is guessed or dropped.
White space around a turn is no part of it. A key whose value is null counts as absent.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quicksviewer.constants import IGNORE_INDEX, IMAGE_MARK, MARKS, VIDEO_MARK
from quicksviewer.conversation import Turn, check_roles
from quicksviewer.data.instructions import pick_instruction
from quicksviewer.utils.registry import lookup

MARK_OF = {"image": IMAGE_MARK, "video": VIDEO_MARK}
ROLE_OF = {"system": "system", "human": "user", "gpt": "assistant"}
CLIP_KEYS = {"start_sec": "start", "end_sec": "end", "timestamps": "timestamps"}
ANY_MARK = re.compile("|".join(map(re.escape, MARKS)))


class SampleError(Exception):
    """A row that cannot be used. `where` is "file:line", `reason` says what is wrong with it."""

    def __init__(self, where: str, reason: str):
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class MediumRef:
    """A file to look at. Of a video: the part start..end to use, times of its stored frames (seconds)."""

    kind: str
    path: str
    start: float | None = None
    end: float | None = None
    timestamps: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.kind not in MARK_OF:
            raise ValueError(f"a medium is an image or a video, got {self.kind!r}")
        if self.kind == "image" and (self.start, self.end, self.timestamps) != (None, None, None):
            raise ValueError(f"an image has no start_sec, end_sec or timestamps: {self.path}")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError(f"end_sec={self.end} must lie after start_sec={self.start or 0.0}")


@dataclass(frozen=True)
class Sample:
    """`media` stand in the order of their marks in `turns`; `kind` is the data_type of the row."""

    uid: str
    turns: tuple[Turn, ...]
    media: tuple[MediumRef, ...]
    kind: str
    source: str | None = None

    def __post_init__(self):
        if (marked := marks_in(self.turns)) != (given := [MARK_OF[medium.kind] for medium in self.media]):
            raise ValueError(f"the marks are {marked}, the media {given}")


def modality(sample: Sample) -> str:
    """What a sample shows: "video" if it has one, else "image" if it has one, else "text"."""
    kinds = {medium.kind for medium in sample.media}
    return next((kind for kind in ("video", "image") if kind in kinds), "text")


def make_labels(ids: Sequence[int], learn: Sequence[bool]) -> list[int]:
    """The ids to be learned, IGNORE_INDEX elsewhere: (T,). Not shifted: the model does that."""
    return [token if learned else IGNORE_INDEX for token, learned in zip(ids, learn, strict=True)]


# Marks


def marks_in(turns: Sequence[Turn]) -> list[str]:
    """All marks of the turns, in order."""
    return [mark for turn in turns for mark in ANY_MARK.findall(turn.text)]


def _check_speakers(turns: Sequence[Turn]) -> None:
    for turn in turns:
        if turn.role != "user" and (found := ANY_MARK.search(turn.text)):
            raise ValueError(f"{found[0]} in what the {turn.role} says; only a human turn can show a medium")


def _place_marks(turns: Sequence[Turn], kind: str, count: int) -> tuple[Turn, ...]:
    mark, turns = MARK_OF[kind], tuple(turns)
    _check_speakers(turns)
    found = marks_in(turns).count(mark)
    if found in (count, 0):
        missing = count - found
        first = next(place for place, turn in enumerate(turns) if turn.role == "user")
        text = (f"{mark}\n" * missing + turns[first].text).strip()
        return (*turns[:first], replace(turns[first], text=text), *turns[first + 1 :])
    raise ValueError(f"{found} {mark} in the conversation, but {count} {kind}s")


def preprocess_multimodal_image(turns: Sequence[Turn], num_images: int) -> tuple[Turn, ...]:
    """The turns with an image mark per image: where there is none, all go before the first user turn's text.

    ValueError: marks are there, but not as many as images, or one is in a turn that is not the user's.
    """
    return _place_marks(turns, "image", num_images)


def preprocess_multimodal_video(turns: Sequence[Turn], num_videos: int) -> tuple[Turn, ...]:
    """As `preprocess_multimodal_image`, for videos."""
    return _place_marks(turns, "video", num_videos)


def _with_marks(turns: tuple[Turn, ...], num_images: int, num_videos: int) -> tuple[Turn, ...]:
    """Turns whose marks agree with the media. No marks at all: images come first, then videos, then text."""
    _check_speakers(turns)
    marks = marks_in(turns)
    for kind, count in (("image", num_images), ("video", num_videos)):
        found = marks.count(MARK_OF[kind])
        if marks and found != count:
            raise ValueError(f"{found} {MARK_OF[kind]} in the conversation, but {count} {kind}s")
    # Videos first, since each call puts its marks before what is there.
    return preprocess_multimodal_image(preprocess_multimodal_video(turns, num_videos), num_images)


# Values: each function takes the value of a key and gives it in our form, or says what it should have been.


def _string(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a text that is not empty, got {value!r}")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"must be a number of seconds from 0 on, got {value!r}")
    return float(value)


def _list(value: Any) -> list:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list that is not empty, got {value!r}")
    return value


def _timestamps(value: Any) -> tuple[float, ...]:
    times = tuple(_seconds(item) for item in _list(value))
    if any(after < before for before, after in zip(times, times[1:], strict=False)):
        raise ValueError("must not go back in time")
    return times


def _strings(value: Any) -> tuple[str, ...]:
    return (_string(value),) if isinstance(value, str) else tuple(_string(item) for item in _list(value))


def _strings_or_null(value: Any) -> str | tuple[str | None, ...]:
    if isinstance(value, str):
        return _string(value)
    return tuple(None if item is None else _string(item) for item in _list(value))


def _mapping(value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, got {value!r}")
    return value


def _turn(value: Any) -> Turn:
    if not isinstance(value, dict) or set(value) != {"from", "value"}:
        raise ValueError(f"a turn has the keys 'from' and 'value', got {value!r}")
    if not isinstance(value["value"], str):
        raise ValueError(f"the value of a turn must be a text, got {value['value']!r}")
    role = lookup(ROLE_OF, _string(value["from"]), "speaker ('from')")
    return Turn(role, value["value"].strip())


def _turns(value: Any) -> tuple[Turn, ...]:
    turns = tuple(_turn(item) for item in _list(value))
    check_roles(turns)
    if turns[-1].role != "assistant":
        raise ValueError("must end with a gpt turn")
    return turns


KEYS: dict[str, Callable[[Any], Any]] = {
    "uid": _string,
    "data_type": _string,
    "image": _strings_or_null,
    "video": _strings,
    "video_id": _strings,
    "conversations": _turns,
    "caption": _strings_or_null,
    "start_sec": _seconds,
    "end_sec": _seconds,
    "timestamps": _timestamps,
    "video_len": _seconds,
    "metadata": _mapping,
    "source": _string,
}


# Rows: each function takes the values of a row by key, and gives its turns (marks as written) and its media.

Content = tuple[tuple[Turn, ...], list[MediumRef], list[MediumRef]]


def _images(row: dict) -> list[MediumRef]:
    paths = row.get("image", ())
    paths = (paths,) if isinstance(paths, str) else paths
    if None in paths:
        raise ValueError("null in image is for data_type 'interleave'")
    return [MediumRef("image", path) for path in paths]


def _videos(row: dict) -> list[MediumRef]:
    if "video" in row and "video_id" in row:
        raise ValueError("video and video_id are two names for one thing, give one of them")
    paths = row.get("video", row.get("video_id", ()))
    window = {field: row[key] for key, field in CLIP_KEYS.items() if key in row}
    if window and len(paths) != 1:
        raise ValueError(f"{', '.join(CLIP_KEYS)} are for a row of one video, this one has {len(paths)}")
    return [MediumRef("video", path, **window) for path in paths]


def _from_conversations(row: dict) -> Content:
    return row["conversations"], _images(row), _videos(row)


def _from_caption(row: dict) -> Content:
    images, videos = _images(row), _videos(row)
    if not isinstance(row["caption"], str):
        raise ValueError("a list of captions is for data_type 'interleave'")
    if not images and not videos:
        raise ValueError("a caption needs an image or a video")
    instruction = pick_instruction("video" if videos else "image", row["uid"])
    return (Turn("user", instruction), Turn("assistant", row["caption"].strip())), images, videos


def _from_interleave(row: dict) -> Content:
    """Runs of images become user turns of marks, runs of text what the assistant says."""
    images, texts = row["image"], row["caption"]
    if isinstance(images, str) or isinstance(texts, str) or len(images) != len(texts):
        raise ValueError("image and caption must be lists of one length, each null where the other is not")
    turns: list[Turn] = []
    for place, (path, text) in enumerate(zip(images, texts, strict=True)):
        if (path is None) == (text is None):
            raise ValueError(f"place {place} must have an image or a caption, and not both")
        role, said = ("user", IMAGE_MARK) if text is None else ("assistant", text.strip())
        if turns and turns[-1].role == role:
            said = f"{turns.pop().text}\n{said}"
        turns.append(Turn(role, said))
    if (turns[0].role, turns[-1].role) != ("user", "assistant"):
        raise ValueError("must start with an image and end with a caption")
    return tuple(turns), [MediumRef("image", path) for path in images if path is not None], []


@dataclass(frozen=True)
class Builder:
    """How rows of a data_type are read: the keys they must have, those they may have, and the function."""

    needs: frozenset[str]
    takes: frozenset[str]
    build: Callable[[dict], Content]


ANY_KIND = {"uid", "data_type", "metadata", "source", "video_len"}
MEDIA = {"image", "video", "video_id", *CLIP_KEYS}
BUILDERS = {
    "conversations": Builder(frozenset({"conversations"}), frozenset(MEDIA), _from_conversations),
    "caption": Builder(frozenset({"caption"}), frozenset(MEDIA), _from_caption),
    "interleave": Builder(frozenset({"image", "caption"}), frozenset(), _from_interleave),
}


def _read(record: dict) -> dict:
    """Values of a row by key, each in our form."""
    row = {}
    for key, value in record.items():
        read = lookup(KEYS, key, "key")
        if value is None:
            continue
        try:
            row[key] = read(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    if missing := [key for key in ("uid", "data_type") if key not in row]:
        raise ValueError(f"{' and '.join(missing)} missing")
    return row


def _check_keys(row: dict, builder: Builder) -> None:
    if missing := sorted(builder.needs - row.keys()):
        raise ValueError(f"data_type {row['data_type']!r} needs {', '.join(missing)}")
    if strange := sorted(row.keys() - builder.needs - builder.takes - ANY_KIND):
        raise ValueError(f"data_type {row['data_type']!r} has no {', '.join(strange)}")


def _check_letters(turns: Sequence[Turn]) -> None:
    """JSON can say half of a letter (a lone surrogate), which no tokenizer takes."""
    for turn in turns:
        try:
            turn.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half of a letter, {ascii(turn.text[error.start])}, in a turn") from error


def _in_order(marks: list[str], images: list[MediumRef], videos: list[MediumRef]) -> tuple[MediumRef, ...]:
    media = {IMAGE_MARK: iter(images), VIDEO_MARK: iter(videos)}
    return tuple(next(media[mark]) for mark in marks)


def _parse(record: dict) -> Sample:
    row = _read(record)
    builder = lookup(BUILDERS, row["data_type"], "data_type")
    _check_keys(row, builder)
    turns, images, videos = builder.build(row)
    turns = _with_marks(turns, len(images), len(videos))
    if any(not turn.text for turn in turns if turn.role != "system"):
        raise ValueError("a turn of the conversation is empty")
    _check_letters(turns)
    media = _in_order(marks_in(turns), images, videos)
    return Sample(row["uid"], turns, media, row["data_type"], row.get("source"))


def parse_sample(record: dict, where: str) -> Sample:
    """The Sample of a row of a JSONL file; SampleError with `where` ("file:line") if it is wrong."""
    try:
        return _parse(_mapping(record))
    except ValueError as error:
        raise SampleError(where, str(error)) from error
