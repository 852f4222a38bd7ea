"""What a user types, as turns and media."""

import pytest

from quicksviewer.constants import IMAGE_MARK, MODEL_TOKENS, VIDEO_MARK
from quicksviewer.conversation import Turn
from quicksviewer.serve.dialogue import SUFFIXES, Dialogue, medium_kind, parse_dialogue

V, I = VIDEO_MARK, IMAGE_MARK  # noqa: E741

CASES = {
    "nothing": ([], [], [], []),
    "a question": (["Hello?"], ["Hello?"], [], []),
    "a video and a question": (["a.mp4", "What?"], [f"{V}\nWhat?"], [(V, "a.mp4")], []),
    "an image and a question": (["a.png", "What?"], [f"{I}\nWhat?"], [(I, "a.png")], []),
    "media keep their order": (
        ["b.png", "a.mp4", "c.jpg", "What?"],
        [f"{I}\n{V}\n{I}\nWhat?"],
        [(I, "b.png"), (V, "a.mp4"), (I, "c.jpg")],
        [],
    ),
    "turns alternate": (["Who?", "Me.", "Why?"], ["Who?", "Me.", "Why?"], [], []),
    "media of a later turn": (
        ["a.mp4", "Who?", "Me.", "b.png", "And here?"],
        [f"{V}\nWho?", "Me.", f"{I}\nAnd here?"],
        [(V, "a.mp4"), (I, "b.png")],
        [],
    ),
    "media wait": (["a.mp4"], [], [], [(V, "a.mp4")]),
    "media wait behind a question": (["Who?", "a.mp4"], ["Who?"], [], [(V, "a.mp4")]),
    "the same file twice": (["a.mp4", "a.mp4", "?"], [f"{V}\n{V}\n?"], [(V, "a.mp4")] * 2, []),
    "white space around": (["  What?\n"], ["What?"], [], []),
    "several lines": (["One\ntwo.mp4"], ["One\ntwo.mp4"], [], []),
    "upper case": (["A.MP4", "What?"], [f"{V}\nWhat?"], [(V, "A.MP4")], []),
    "folders and blanks": (["my clips/a b.mp4", "?"], [f"{V}\n?"], [(V, "my clips/a b.mp4")], []),
    "a hidden file is a text": ([".mp4"], [".mp4"], [], []),
    "an unknown suffix is a text": (["notes.txt"], ["notes.txt"], [], []),
    "a dot inside": (["Is 2.5 more?"], ["Is 2.5 more?"], [], []),
}

ERRORS = {
    "an empty question": ([""], "empty turn"),
    "white space only": (["a.mp4", " \n"], "empty turn"),
    "a mark of one's own": (["What is in <video>?"], "<video> stands in the text"),
    "an image mark in an answer": (["Who?", "See <image>."], "<image> stands in the text"),
    "a medium before an answer": (["Who?", "a.mp4", "Me."], "a.mp4 must stand before a question"),
}


@pytest.mark.parametrize("name", CASES)
def test_words_become_a_dialogue(name):
    words, texts, media, waiting = CASES[name]
    dialogue = parse_dialogue(words)
    turns = [Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]
    assert list(dialogue.turns) == turns
    assert (list(dialogue.media), list(dialogue.waiting)) == (media, waiting)
    assert dialogue.speaker == ("user", "assistant")[len(turns) % 2]


@pytest.mark.parametrize("name", ERRORS)
def test_a_wrong_context_says_what_is_wrong(name):
    words, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        parse_dialogue(words)


def test_a_dialogue_is_a_value():
    """Going on from a dialogue leaves it as it was."""
    start = parse_dialogue(["a.mp4", "Who?", "Me."])
    one, other = start.see("b.png").say("What?"), start.say("Why?")
    assert start == parse_dialogue(["a.mp4", "Who?", "Me."]) and len(start.turns) == 2
    assert one == parse_dialogue(["a.mp4", "Who?", "Me.", "b.png", "What?"]) and other != one
    assert Dialogue() == parse_dialogue([])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_known_in_any_case(suffix):
    assert medium_kind(f"x{suffix}") == medium_kind(f"dir.d/x{suffix.upper()}") == SUFFIXES[suffix]


@pytest.mark.parametrize("path", ["a.txt", "a", "mp4", ""])
def test_another_path_is_refused_with_what_is_known(path):
    with pytest.raises(ValueError, match=r"\.mp4.*\.png"):
        medium_kind(path)


def test_marks_in_turns_are_those_of_the_media():
    dialogue = parse_dialogue(["a.mp4", "b.png", "Who?", "Me.", "c.png", "What?"])
    text = "\n".join(turn.text for turn in dialogue.turns)
    found = [line for line in text.split("\n") if line in (V, I)]
    assert found == [mark for mark, _ in dialogue.media] and not any(t in text for t in MODEL_TOKENS)
