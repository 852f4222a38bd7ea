"""What a user types becomes turns and media; testable without a model.

A context is a list of words as given on the command line: paths of media, and texts. Media stand before the
text that follows them, texts alternate between user and assistant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quicksviewer.constants import IMAGE_MARK, MARKS, VIDEO_MARK
from quicksviewer.conversation import Turn

SUFFIXES = {
    **dict.fromkeys((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"), VIDEO_MARK),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"), IMAGE_MARK),
}
"""How a word is known to be a path of a medium. What is in the file is found out when it is opened."""


@dataclass(frozen=True)
class Dialogue:
    """Turns so far, the media they mark in order as (mark, path), and media that wait for the next
    question."""

    turns: tuple[Turn, ...] = ()
    media: tuple[tuple[str, str], ...] = ()
    waiting: tuple[tuple[str, str], ...] = ()

    @property
    def speaker(self) -> str:
        return "assistant" if self.turns and self.turns[-1].role == "user" else "user"

    def see(self, path: str, mark: str | None = None) -> "Dialogue":
        """A medium, to be shown with the next question; without a mark its name tells which kind it is."""
        return Dialogue(self.turns, self.media, (*self.waiting, (mark or medium_kind(path), path)))

    def say(self, text: str) -> "Dialogue":
        """The next turn. ValueError for an empty one, or one that holds marks of its own."""
        text = text.strip()
        if not text:
            raise ValueError("an empty turn says nothing")
        if found := [mark for mark in MARKS if mark in text]:
            raise ValueError(f"{found[0]} stands in the text; name media by their paths")
        if self.speaker == "assistant":
            if self.waiting:
                raise ValueError(f"{self.waiting[0][1]} must stand before a question, not before an answer")
            return Dialogue((*self.turns, Turn("assistant", text)), self.media)
        marks = "".join(f"{mark}\n" for mark, _ in self.waiting)
        return Dialogue((*self.turns, Turn("user", marks + text)), self.media + self.waiting)


def medium_kind(path: str) -> str:
    """The mark of a medium, by its suffix. ValueError for one that is not known."""
    mark = SUFFIXES.get(Path(path).suffix.lower())
    if mark is None:
        raise ValueError(f"{path}: known media end in {', '.join(SUFFIXES)}")
    return mark


def parse_dialogue(context: Sequence[str]) -> Dialogue:
    """A dialogue from words: what ends like a medium is one, all else is said in turn, the user first."""
    dialogue = Dialogue()
    for word in context:
        is_medium = Path(word).suffix.lower() in SUFFIXES and "\n" not in word
        dialogue = dialogue.see(word) if is_medium else dialogue.say(word)
    return dialogue
