"""Every answer, found again by looking at each second of the world; nothing of the module is used for it."""

import random
import re
from collections import Counter

import pytest
from tiny_world import WORLD

from quicksviewer.synthetic.questions import (
    FORMS,
    KINDS,
    LETTERS,
    SEEN_WELL,
    ask,
    caption,
    cubed_timeline,
    stamp,
    timeline,
)
from quicksviewer.synthetic.world import World, WorldConfig, draw_world

SEEDS = range(60)
WORLDS = [draw_world(seed, config) for config in (WORLD, WorldConfig()) for seed in SEEDS]


class Film:
    """A world second by second, and what can be read off it."""

    def __init__(self, world: World):
        events = sorted(world.events, key=lambda event: event.start)
        self.seconds = [event for event in events for _ in range(event.stop - event.start)]
        self.lasts = Counter(event.colour for event in self.seconds)
        self.colours = list(dict.fromkeys(event.colour for event in self.seconds))
        self.by_colour = {event.colour: event for event in self.seconds}

    def words(self, colour: str) -> str:
        event, lasts = self.by_colour[colour], self.lasts[colour]
        told = [colour, event.shape, event.motion if lasts >= 3 else "", "briefly" if lasts == 1 else ""]
        return " ".join(word for word in (*told, event.word) if word)

    def end(self, name: str):
        return self.seconds[{"first": 0, "last": -1}[name]]

    def written(self) -> list:
        return [event for event in self.by_colour.values() if event.word]

    def brief(self) -> str | None:
        short = [colour for colour, seconds in self.lasts.items() if seconds <= 2]
        return short[0] if len(short) == 1 and self.lasts[short[0]] == 1 else None


TRUTH = {
    "colour_at": (r"Which colour at (\d\d)\?", lambda f, at: f.seconds[int(at)].colour),
    "after": (r"Which follows (\w+)\?", lambda f, c: f.colours[f.colours.index(c) + 1]),
    "order": (r"Which is earlier, (\w+), (\w+) or (\w+)\?", lambda f, *c: min(c, key=f.colours.index)),
    "count": (r"How many colours\?", lambda f: str(len(f.colours))),
    "motion": (r"Where does the (first|last) go\?", lambda f, end: f.end(end).motion),
    "shape": (r"Which shape is (first|last)\?", lambda f, end: f.end(end).shape),
    "brief": (r"Which is brief\?", lambda f: f.brief()),
    "first": (r"Which is first\?", lambda f: f.colours[0]),
    "last": (r"Which is last\?", lambda f: f.colours[-1]),
    "word": (r"Which word is shown\?", lambda f: f.written()[0].word),
}
CAN_BE_ASKED = {
    "after": lambda f: len(f.colours) > 1,
    "order": lambda f: len(f.colours) > 2,
    "motion": lambda f: max(f.lasts[f.colours[0]], f.lasts[f.colours[-1]]) >= SEEN_WELL,
    "brief": lambda f: f.brief() is not None,
    "word": lambda f: len(f.written()) == 1,
}
"""Kinds that not every world has an answer to."""


def asked(kind: str, count: int = 4):
    """(film, question, rng) of a kind about all worlds, several times."""
    for place, world in enumerate(WORLDS):
        rng = random.Random(place)
        for _ in range(count):
            yield Film(world), ask(world, kind, rng), rng


def test_every_kind_is_tested():
    assert set(TRUTH) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_follows_from_the_world(kind):
    pattern, truth = TRUTH[kind]
    answered = 0
    for film, question, _ in asked(kind):
        assert (question is not None) == CAN_BE_ASKED.get(kind, lambda _: True)(film)
        if question is not None:
            match = re.fullmatch(pattern, question.text)
            assert question.answer == truth(film, *match.groups())
            assert (question.kind, question.form) == (kind, "open")
            answered += 1
    assert answered > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_one_of_those_that_there_could_have_been(kind):
    for _, question, _ in asked(kind):
        if question is not None:
            assert question.answers.count(question.answer) == 1
            assert question.chance == 1 / len(set(question.answers)) == 1 / len(question.answers)


@pytest.mark.parametrize("kind", KINDS)
def test_options_hold_the_answer_once(kind):
    for _, question, rng in asked(kind):
        if question is None:
            continue
        choice = FORMS["choice"](question, rng)
        listed = re.split(", | or ", choice.text.removeprefix(f"{question.text} ").removesuffix("?"))
        assert tuple(listed) == choice.answers and choice.answer == question.answer
        assert listed.count(question.answer) == 1 and set(listed) <= set(question.answers)
        assert len(set(listed)) == len(listed) == min(4, len(question.answers))
        assert choice.chance == 1 / len(listed) and choice.form == "choice"


@pytest.mark.parametrize("kind", KINDS)
def test_the_letter_stands_before_the_answer(kind):
    for _, question, rng in asked(kind):
        if question is None:
            continue
        letter = FORMS["letter"](question, rng)
        first, *lines, last = letter.text.split("\n")
        options = dict(line.split(". ", maxsplit=1) for line in lines)
        assert (first, last) == (question.text, "Answer with the letter.")
        assert options[letter.answer] == question.answer and letter.answers == tuple(options)
        assert list(options) == list(LETTERS[: len(options)]) and letter.form == "letter"


@pytest.mark.parametrize("form", ["choice", "letter"])
def test_places_of_the_answer_are_even(form):
    questions = [FORMS[form](question, rng) for _, question, rng in asked("first", 10)]
    places = Counter(question.answers.index(question.answer) for question in questions)
    assert all(abs(places[place] / len(questions) - 0.25) < 0.05 for place in range(4))


def test_what_moves_is_asked_only_where_it_is_seen_well():
    for film, question, _ in asked("motion"):
        if question is not None:
            colour = film.end("first" if "first" in question.text else "last").colour
            assert film.lasts[colour] >= SEEN_WELL


def test_the_same_generator_asks_the_same():
    for kind in KINDS:
        assert ask(WORLDS[0], kind, random.Random(1)) == ask(WORLDS[0], kind, random.Random(1))


# --- descriptions ---


def test_a_timeline_tells_each_event_and_its_second():
    for world in WORLDS:
        film, lines = Film(world), timeline(world).split("\n")
        starts = [film.seconds.index(film.by_colour[colour]) for colour in film.colours]
        told = [(f"{start:02d}", film.words(c)) for start, c in zip(starts, film.colours, strict=True)]
        assert [tuple(line.split(" ", maxsplit=1)) for line in lines] == told


def test_a_caption_names_the_events_in_order():
    for world in WORLDS:
        film = Film(world)
        told = [f"a {colour} {film.by_colour[colour].shape}" for colour in film.colours]
        assert caption(world).removesuffix(".").split(", then ") == told


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_a_cube_tells_what_is_seen_while_it_lasts(every):
    for world in WORLDS:
        film = Film(world)
        starts = list(range(0, world.seconds, every))
        for start, line in zip(starts, cubed_timeline(world, starts).split("\n"), strict=True):
            seen = dict.fromkeys(event.colour for event in film.seconds[start : start + every])
            assert line == f"{start:02d} {', '.join(film.words(colour) for colour in seen)}"


@pytest.mark.parametrize(("second", "text"), [(0, "00"), (7, "07"), (7.9, "07"), (63, "63")])
def test_a_stamp_is_whole_seconds_of_fixed_width(second, text):
    assert stamp(second) == text
