"""What a row means: one row of TASKS for each task_type, from a record to examples.

An example is a picture and its texts, as the row says them: nothing is opened and nothing tokenised here.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quicksviewer.data.preprocess import SampleError
from quicksviewer.utils.registry import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture with what is read and what is learned about it."""

    image: Any
    """As the row gives it: a path, bytes, a data URL, base64."""
    text: str | None
    """What the model reads: the question, or the text of a pair. None for captions, which it only writes."""
    target: str | None = None
    """What it learns to write."""
    answers: tuple[str, ...] = ()
    """All that count as right."""
    label: int | None = None
    """Of a pair: 1 where picture and text belong together, 0 where not."""
    where: str = ""


Read = Callable[[dict[str, Any], str, Any], list[Example]]


def value_of(record: dict[str, Any], name: str, where: str) -> Any:
    """record[name]; SampleError where the row has no such field or nothing in it."""
    if record.get(name) is None or record[name] == "":
        known = ", ".join(map(str, record))
        what = "is empty" if name in record else f"is missing.{did_you_mean(name, record)} It has: {known}"
        raise SampleError(where, f"field {name!r} {what}")
    return record[name]


def text_of(value: Any, name: str, where: str) -> str:
    """A text or a number as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise SampleError(where, f"field {name!r} must be a text, got {value!r}")
    return str(value)


def answers_of(value: Any, name: str, where: str) -> tuple[str, ...]:
    """One answer, a list of answers, or of objects with an `answer`, as the VQA data sets have them."""
    values = value if isinstance(value, list | tuple) else [value]
    values = [item.get("answer") if isinstance(item, dict) else item for item in values]
    if not values:
        raise SampleError(where, f"field {name!r} has no answer")
    return tuple(text_of(item, name, where) for item in values)


def read_vqa(record: dict[str, Any], where: str, config) -> list[Example]:
    """A question; the most frequent answer is learned, of several the one that comes first."""
    names = config.data_fields
    question = value_of(record, names.question_field, where)
    answers = answers_of(value_of(record, names.answer_field, where), names.answer_field, where)
    example = Example(
        image=value_of(record, names.image_field, where),
        text=text_of(question, names.question_field, where),
        target=Counter(answers).most_common(1)[0][0],
        answers=answers,
        where=where,
    )
    return [example]


def read_captions(record: dict[str, Any], where: str, config) -> list[Example]:
    """An example for each caption."""
    names = config.data_fields
    image = value_of(record, names.image_field, where)
    captions = value_of(record, names.caption_field, where)
    if isinstance(captions, list | tuple):
        if not config.multiple_captions:
            raise SampleError(where, f"{len(captions)} captions; set image_captioning > multiple_captions")
        if not captions:
            raise SampleError(where, f"field {names.caption_field!r} has no caption")
    else:
        captions = [captions]
    texts = tuple(text_of(caption, names.caption_field, where) for caption in captions)
    return [Example(image=image, text=None, target=text, answers=texts, where=where) for text in texts]


def read_pair(record: dict[str, Any], where: str, config) -> list[Example]:
    """A picture and a text, and whether they belong together."""
    names, label = config.data_fields, None
    if names.label_field is not None:
        label = value_of(record, names.label_field, where)
        if str(label) not in ("0", "1", "False", "True"):
            raise SampleError(where, f"field {names.label_field!r} must be 0 or 1, got {label!r}")
        label = int(str(label) in ("1", "True"))
    text = text_of(value_of(record, names.text_field, where), names.text_field, where)
    return [Example(image=value_of(record, names.image_field, where), text=text, label=label, where=where)]


TASKS: dict[str, Read] = {
    "vqa": read_vqa,
    "image_captioning": read_captions,
    "image_text_retrieval": read_pair,
}
"""task_type -> examples of (record, where, the section of that name). SampleError where a row is no such."""
