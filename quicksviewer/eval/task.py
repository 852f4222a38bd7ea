"""What a benchmark hands to the loop."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question about one video. `chance`: the score of a blind guess; `where`: file and line, for
    errors."""

    uid: str
    video: str
    prompt: str
    answer: str
    kind: str
    chance: float
    where: str
