"""A world of shapes: videos as lists of events with known truth, drawn from a random generator.

An event is one shape of one colour that moves in one way before one background for a whole number of seconds.
Durations are heavy-tailed: long still spans stand beside events that last one second, as in real film. A
world is a value; `video.py` turns it into pixels, `questions.py` into words.
"""

import random
from dataclasses import dataclass

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (60, 90, 240),
    "yellow": (240, 220, 60),
    "purple": (160, 60, 200),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
BACKGROUNDS = {"black": (12, 12, 12), "grey": (96, 96, 96), "brown": (92, 58, 30), "teal": (0, 84, 84)}
WORDS = ("SUN", "CAT", "BUS", "TEA")
LONGEST_EVENT = 40
"""Seconds."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """How big a world is. All durations are whole seconds."""

    min_events: int = 2
    max_events: int = 6
    max_seconds: int = 64
    tail: float = 1.1
    """Exponent of the Zipf law of durations: the smaller, the heavier the tail."""
    word_share: float = 0.25
    """Share of events with a word on the screen."""
    size: int = 48
    """Pixels of a side."""
    fps: int = 2
    """Frames per second of the file."""

    def __post_init__(self):
        if not 1 <= self.min_events <= self.max_events:
            raise ValueError(f"need 1 <= min_events <= max_events, got {self.min_events}, {self.max_events}")
        if self.max_events > len(COLOURS):
            raise ValueError(f"max_events={self.max_events} exceeds the {len(COLOURS)} colours there are")
        if self.max_seconds < self.max_events:
            raise ValueError(
                f"max_seconds={self.max_seconds} leaves no second for each of {self.max_events} events"
            )
        if self.size < 24 or self.size % 2:
            raise ValueError(f"size must be even and at least 24 pixels, got {self.size}")
        if self.fps < 1 or self.tail <= 0 or not 0 <= self.word_share <= 1:
            raise ValueError(f"bad fps={self.fps}, tail={self.tail} or word_share={self.word_share}")


@dataclass(frozen=True)
class Event:
    """One shape doing one thing from `start` (seconds, included) to `stop` (excluded)."""

    start: int
    stop: int
    colour: str
    shape: str
    motion: str
    background: str
    word: str | None
    place: tuple[float, float]
    """Centre at the start, as a share of the picture."""

    @property
    def seconds(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class World:
    """A video's truth: events that follow each other without a gap. No colour appears twice, so it names its
    event."""

    seed: int
    events: tuple[Event, ...]
    possible_counts: tuple[int, ...]
    """Numbers of events that it might have had, before the draw."""

    @property
    def seconds(self) -> int:
        return self.events[-1].stop

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Seconds at which an event begins, the first excluded."""
        return tuple(event.start for event in self.events[1:])

    def at(self, second: float) -> Event:
        return next(event for event in self.events if event.start <= second < event.stop)


def draw_world(seed: int, config: WorldConfig) -> World:
    """The world of a seed. Same seed and config, same world."""
    rng = random.Random(f"world {seed}")
    count = rng.randint(config.min_events, config.max_events)
    colours = rng.sample(list(COLOURS), count)
    events, start = [], 0
    for colour, seconds in zip(colours, draw_durations(rng, count, config), strict=True):
        events.append(_draw_event(rng, colour, start, seconds, events, config))
        start += seconds
    return World(seed, tuple(events), tuple(range(config.min_events, config.max_events + 1)))


def draw_durations(rng: random.Random, count: int, config: WorldConfig) -> list[int]:
    """Zipf-distributed seconds, 1 to LONGEST_EVENT, the longest cut until the sum fits max_seconds."""
    lengths = range(1, LONGEST_EVENT + 1)
    durations = rng.choices(lengths, [length**-config.tail for length in lengths], k=count)
    while sum(durations) > config.max_seconds:
        longest = durations.index(max(durations))
        durations[longest] -= min(sum(durations) - config.max_seconds, (durations[longest] + 1) // 2)
    return durations


def _draw_event(rng, colour, start, seconds, before, config) -> Event:
    last = before[-1].background if before else None
    background = rng.choice([name for name in BACKGROUNDS if name != last])
    word = rng.choice(WORDS) if rng.random() < config.word_share else None
    place = (rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))
    shape, motion = rng.choice(SHAPES), rng.choice(list(MOTIONS))
    return Event(start, start + seconds, colour, shape, motion, background, word, place)
