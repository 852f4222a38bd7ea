"""A world becomes words: captions, timelines, and questions with exact answers.

A kind of question is a row of KINDS: a function from (world, rng) to a Question, or None where the question
would have no single answer. Every question can also be asked with options, named or lettered.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from quicksviewer.synthetic.world import COLOURS, MOTIONS, SHAPES, WORDS, Event, World

LETTERS = "ABCD"
SEEN_WELL = 3
"""Seconds that an event must last before one may ask how it moves: two sampled frames and one to spare."""


@dataclass(frozen=True)
class Question:
    """`answers` is everything that could have been the answer; its size gives chance."""

    kind: str
    text: str
    answer: str
    answers: tuple[str, ...]
    form: str = "open"

    @property
    def chance(self) -> float:
        return 1 / len(self.answers)


def stamp(second: float, digits: int = 2) -> str:
    """A time in whole seconds as fixed-width text, as in the timestamps that the model reads."""
    return f"{int(second):0{digits}d}"


def _colour_at(world: World, rng: random.Random) -> Question:
    second = rng.randrange(world.seconds)
    return Question("colour_at", f"Which colour at {stamp(second)}?", world.at(second).colour, tuple(COLOURS))


def _after(world: World, rng: random.Random) -> Question | None:
    if len(world.events) < 2:
        return None
    place = rng.randrange(len(world.events) - 1)
    before, after = world.events[place : place + 2]
    return Question("after", f"Which follows {before.colour}?", after.colour, tuple(COLOURS))


def _order(world: World, rng: random.Random) -> Question | None:
    if len(world.events) < 3:
        return None
    shown = rng.sample(world.events, 3)
    first = min(shown, key=lambda event: event.start)
    names = tuple(event.colour for event in shown)
    return Question("order", f"Which is earlier, {names[0]}, {names[1]} or {names[2]}?", first.colour, names)


def _count(world: World, rng: random.Random) -> Question:
    numbers = tuple(map(str, world.possible_counts))
    return Question("count", "How many colours?", str(len(world.events)), numbers)


def _ends(world: World) -> dict[str, Event]:
    """Events that can be named by their place."""
    return {"first": world.events[0], "last": world.events[-1]}


def _motion(world: World, rng: random.Random) -> Question | None:
    long = [(name, event) for name, event in _ends(world).items() if event.seconds >= SEEN_WELL]
    if not long:
        return None
    name, event = rng.choice(long)
    return Question("motion", f"Where does the {name} go?", event.motion, tuple(MOTIONS))


def _shape(world: World, rng: random.Random) -> Question:
    name, event = rng.choice(list(_ends(world).items()))
    return Question("shape", f"Which shape is {name}?", event.shape, SHAPES)


def _brief(world: World, rng: random.Random) -> Question | None:
    short = [event for event in world.events if event.seconds <= 2]
    if len(short) != 1 or short[0].seconds != 1:
        return None
    return Question("brief", "Which is brief?", short[0].colour, tuple(COLOURS))


def _first(world: World, rng: random.Random) -> Question:
    return Question("first", "Which is first?", world.events[0].colour, tuple(COLOURS))


def _last(world: World, rng: random.Random) -> Question:
    return Question("last", "Which is last?", world.events[-1].colour, tuple(COLOURS))


def _word(world: World, rng: random.Random) -> Question | None:
    written = [event for event in world.events if event.word]
    if len(written) != 1:
        return None
    return Question("word", "Which word is shown?", written[0].word, WORDS)


KINDS: dict[str, Callable[[World, random.Random], Question | None]] = {
    "colour_at": _colour_at,
    "after": _after,
    "order": _order,
    "count": _count,
    "motion": _motion,
    "shape": _shape,
    "brief": _brief,
    "first": _first,
    "last": _last,
    "word": _word,
}


def ask(world: World, kind: str, rng: random.Random) -> Question | None:
    """A question of a kind about a world, or None where it would have no single answer."""
    return KINDS[kind](world, rng)


def _options(question: Question, rng: random.Random) -> list[str]:
    others = [answer for answer in question.answers if answer != question.answer]
    shown = [*rng.sample(others, min(len(LETTERS) - 1, len(others))), question.answer]
    rng.shuffle(shown)
    return shown


def with_choices(question: Question, rng: random.Random) -> Question:
    """The same question with up to four options; the answer is one of them, in words."""
    shown = _options(question, rng)
    text = f"{question.text} {', '.join(shown[:-1])} or {shown[-1]}?"
    return replace(question, text=text, answers=tuple(shown), form="choice")


def with_letters(question: Question, rng: random.Random) -> Question:
    """The same question with lettered options; the answer is a letter."""
    shown = _options(question, rng)
    letters = LETTERS[: len(shown)]
    lines = [f"{letter}. {text}" for letter, text in zip(letters, shown, strict=True)]
    text = "\n".join([question.text, *lines, "Answer with the letter."])
    return replace(
        question,
        text=text,
        answer=letters[shown.index(question.answer)],
        answers=tuple(letters),
        form="letter",
    )


FORMS = {"open": lambda question, rng: question, "choice": with_choices, "letter": with_letters}


def describe(event: Event) -> str:
    """An event in words: what one sees while it lasts."""
    words = [event.colour, event.shape]
    if event.seconds >= SEEN_WELL:
        words.append(event.motion)
    if event.seconds == 1:
        words.append("briefly")
    return " ".join(words + ([event.word] if event.word else []))


def timeline(world: World) -> str:
    """A dense caption: every event with the second at which it begins."""
    return "\n".join(f"{stamp(event.start)} {describe(event)}" for event in world.events)


def caption(world: World) -> str:
    """A short caption without times."""
    return ", then ".join(f"a {event.colour} {event.shape}" for event in world.events) + "."


def cubed_timeline(world: World, starts: list[int]) -> str:
    """What each cube of a video shows, with the second at which the cube begins: the words a visual stream
    stands for."""
    ends = [*starts[1:], world.seconds]
    cubes = []
    for start, end in zip(starts, ends, strict=True):
        seen = [describe(event) for event in world.events if event.start < end and event.stop > start]
        cubes.append(f"{stamp(start)} {', '.join(seen)}")
    return "\n".join(cubes)
