"""Chat on the command line: what is printed, what is written, and the exit code."""

import builtins
import re
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_world import fresh, videos

from quicksviewer.model.builder import load_pretrained_model
from quicksviewer.serve.cli import main
from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.session import ChatSession
from quicksviewer.serve.strip import BAR, CELL, GAP

SHORT = 6


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    loaded = fresh(tiny)
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_pretrained_model(str(folder))


@pytest.fixture(scope="module")
def clip(tiny) -> str:
    return str(videos(tiny)[0])


@pytest.fixture(scope="module")
def picture(tiny) -> str:
    return str(tiny / "data/images/00000_0.png")


@pytest.fixture
def chat(folder, monkeypatch):
    """main with a short answer; `typed` are the lines of the prompt, then its end."""

    def run(*words, typed=()) -> int:
        lines = iter(typed)

        def read(prompt=""):
            if (line := next(lines, None)) is None:
                raise EOFError
            return line

        monkeypatch.setattr(builtins, "input", read)
        short = ["--max-new-tokens", SHORT, "--device", "cpu"]
        return main([str(word) for word in ("--model-path", folder, *short, *words)])

    return run


def answers(loaded, *paths, questions) -> list[str]:
    session = ChatSession(loaded, Decoding(max_new_tokens=SHORT))
    for path in paths:
        session.see(path)
    return [session.ask(question) for question in questions]


# --- asking ---


def test_questions_of_the_command_line_are_answered_and_it_ends(chat, loaded, clip, capsys):
    questions = ["What happens when?", "Which is first?"]
    assert chat("--context", clip, "--ask", *questions) == 0
    told = answers(loaded, clip, questions=questions)
    expected = "".join(f"> {q}\n{a}\n" for q, a in zip(questions, told, strict=True))
    assert capsys.readouterr().out == expected


def test_a_context_ends_with_a_question_and_the_prompt_follows(chat, loaded, clip, picture, capsys):
    assert chat("--context", clip, "What?", typed=[picture, "", "And here?", "exit", "never"]) == 0
    session = ChatSession(loaded, Decoding(max_new_tokens=SHORT))
    session.see(clip)
    first = session.ask("What?")
    session.see(picture)
    second = session.ask("And here?")
    out = capsys.readouterr().out
    assert out.startswith(f"> What?\n{first}\n") and f"\n{second}\ndecode " in out
    assert "will be shown with the next question" in out


def test_a_told_dialogue_is_gone_on_with(chat, loaded, clip, capsys):
    assert chat("--context", clip, "What?", "red", "--ask", "And then?") == 0
    session = ChatSession(loaded, Decoding(max_new_tokens=SHORT))
    session.see(clip)
    session.dialogue = session.dialogue.say("What?").say("red")
    assert capsys.readouterr().out == f"> And then?\n{session.ask('And then?')}\n"


@pytest.mark.parametrize("word", ["exit", "quit", None])
def test_the_prompt_ends(chat, word):
    assert chat(typed=[word] if word else []) == 0


@pytest.mark.parametrize("text", ["Is [/b] red?", "[red]", "[1, 2] \\[x]"])
def test_brackets_are_no_markup(chat, capsys, text):
    assert chat("--ask", text) == 0
    assert capsys.readouterr().out.startswith(f"> {text}\n")


def test_the_prompt_survives_what_cannot_be_used(chat, loaded, clip, capsys):
    typed = ["nowhere[/b].mp4", "What is in <video>?", clip, "What?"]
    assert chat(typed=typed) == 0
    out = capsys.readouterr().out
    assert "nowhere[/b].mp4: no such file" in out and "<video> stands in the text" in out
    assert f"\n{answers(loaded, clip, questions=['What?'])[0]}\ndecode " in out


@pytest.mark.parametrize(("flags", "frames"), [([], 16), (["--video_nframes", "3"], 3)])
def test_fewer_frames_can_be_asked_for(chat, clip, tmp_path, capsys, flags, frames):
    assert chat("--context", clip, "--showcase", tmp_path / "a.png", *flags) == 0
    seen = int(re.search(r"(\d+) frames", capsys.readouterr().out)[1])
    assert seen == frames if flags else 3 < seen <= frames


# --- the picture ---


@pytest.mark.parametrize("questions", [[], ["Which is first?", "Is [/b] red?"]])
def test_a_showcase_is_written(chat, loaded, clip, tmp_path, capsys, questions):
    path = tmp_path / "new" / "[/b]strip.png"
    ask = ["--ask", *questions] if questions else []
    assert chat("--context", clip, "--showcase", path, *ask) == 0
    session = ChatSession(loaded)
    session.see(clip)
    cubes = session.encode().cuts.cubes[0]
    frames = len(session.media[0].pixels)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[0] == -(-frames // 12) * (CELL + BAR + 2 * GAP) + 2 * GAP + 20 * len(questions)
    first = sheet[GAP + BAR : GAP + BAR + CELL : 2, GAP : GAP + CELL : 2]
    assert np.array_equal(first, session.media[0].pixels[0].permute(1, 2, 0).numpy())
    out = capsys.readouterr().out
    assert f"{frames} frames, {cubes} cubes" in out and out.count("  cube ") == cubes
    bars = [len(bar) for bar in re.findall(r"#+", out)]
    assert len(bars) == cubes and sum(bars) == frames
    assert str(path) in out


@pytest.mark.parametrize("media", [[], ["clip", "clip"], ["picture"]])
def test_a_showcase_needs_one_video(chat, clip, picture, tmp_path, capsys, media):
    paths = [{"clip": clip, "picture": picture}[name] for name in media]
    assert chat("--context", *paths, "--showcase", tmp_path / "a.png") == 1
    assert "needs one video" in capsys.readouterr().err and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("place", ["file.txt/a.png", "a.unknown"])
def test_a_picture_that_cannot_be_written_is_said(chat, clip, tmp_path, capsys, place):
    (tmp_path / "file.txt").write_text("no folder")
    assert chat("--context", clip, "--showcase", tmp_path / place) == 1
    assert "error: " in capsys.readouterr().err


# --- what goes wrong ---


@pytest.mark.parametrize("name", ["nowhere.mp4", "nowhere.png"])
def test_a_missing_file_is_named(chat, capsys, name):
    assert chat("--context", name, "--ask", "What?") == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {name}: no such file or directory"


def test_a_file_that_is_no_video_is_named(chat, tmp_path, capsys):
    (tmp_path / "words.mp4").write_text("these are words")
    assert chat("--context", tmp_path / "words.mp4", "--ask", "What?") == 1
    assert "words.mp4: is text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--top-p", "0.5"], "need a temperature"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--context", ""], "empty turn"),
        (["--context", "Who?", "a.mp4", "Me."], "a.mp4 must stand before a question"),
        (["--video_nframes", "0"], "max_frames=0"),
        (["--video_fps", "0"], "fps=0"),
        (["--model-path", "nowhere"], "nowhere is no checkpoint folder"),
        (["--load-4bit", "--load-8bit"], "choose one"),
        (["--load-4bit"], "quicksviewer[quant]"),
    ],
)
def test_wrong_usage_is_said_and_coded(chat, monkeypatch, capsys, words, message):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    assert chat(*words, "--ask" if words[0] != "--context" else "--seed", "1") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--no-such-flag"], ["--seed", "one"], ["--context"]])
def test_the_parser_refuses_with_the_same_code(words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
