"""Questions that a data set leaves out: what a person would have asked to get the text that it has."""

from quicksviewer.data.instructions import pick_instruction

QUESTIONS = {
    "storyline": "Please provide a general outline of the storyline of this video.",
    "climax": "Please locate the climax of this video: when is it, and what happens?",
}


def describe(kind: str, uid: str) -> str:
    """A request for a description of an "image" or a "video", the same for the same uid."""
    return pick_instruction(kind, uid)
