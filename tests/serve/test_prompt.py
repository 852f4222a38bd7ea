"""The prompt of the terminal: every command, what it prints and writes, and Ctrl-C in a real process."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tiny_world import fresh, videos

from quicksviewer.serve import prompt
from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.session import ChatSession
from quicksviewer.serve.stages import STAGES, Times, in_words
from quicksviewer.utils.config import build
from quicksviewer.utils.frame_plan import FramePlan

QUESTION = "What happens when?"


@pytest.fixture(scope="module")
def loaded(tiny):
    loaded = fresh(tiny)
    loaded.model.eval()
    return loaded


@pytest.fixture
def session(loaded):
    return ChatSession(loaded, Decoding(max_new_tokens=6))


@pytest.fixture(scope="module")
def clip(tiny) -> str:
    return str(videos(tiny)[0])


@pytest.fixture(scope="module")
def picture(tiny) -> str:
    return str(tiny / "data/images/00000_0.png")


def test_help_names_every_command(session, capsys):
    prompt.take(session, "/help")
    out = capsys.readouterr().out
    assert all(word in out and command.does in out for word, command in prompt.COMMANDS.items())


def test_media_are_shown_by_command_and_by_path(session, clip, picture, tmp_path):
    nameless = tmp_path / "clip with blanks"
    nameless.write_bytes(Path(clip).read_bytes())
    for line in (f"/video {nameless}", f"/image {picture}", clip):
        prompt.take(session, line)
    assert [mark for mark, _ in session.dialogue.waiting] == ["<video>", "<image>", "<video>"]
    assert [medium.is_video for medium in session.media] == [True, False, True]


def test_cubes_are_listed_and_drawn(session, clip, tmp_path, capsys):
    prompt.take(session, f"/video {clip}")
    prompt.take(session, f"/cubes {tmp_path / 'strip.png'}")
    out = capsys.readouterr().out
    cubes = session.encode().cuts.cubes[0]
    assert f"{len(session.media[0].times)} frames, {cubes} cubes:" in out
    bars = [len(bar) for bar in re.findall("#+", out)]
    assert len(bars) == cubes and sum(bars) == len(session.media[0].times)
    assert Image.open(tmp_path / "strip.png").size[0] >= 640


def test_clear_begins_anew(session, clip):
    prompt.take(session, clip)
    prompt.take(session, QUESTION)
    prompt.take(session, "/clear")
    assert session.dialogue.turns == () and session.media == []


def test_what_was_said_is_shown_and_saved(session, clip, picture, tmp_path, capsys):
    for line in (clip, picture, QUESTION, "Which is first?"):
        prompt.take(session, line)
    told = [turn.text for turn in session.dialogue.turns]
    prompt.take(session, "/history")
    out = capsys.readouterr().out
    assert all(text.splitlines()[-1] in out for text in told)
    prompt.take(session, f"/save {tmp_path / 'a.json'}")
    saved = json.loads((tmp_path / "a.json").read_text())
    assert [turn["text"] for turn in saved["turns"]] == told
    assert [medium["path"] for medium in saved["media"]] == [clip, picture]
    plan, none = (medium["plan"] for medium in saved["media"])
    assert (
        build(FramePlan, plan, "plan") == session.media[0].plan and plan["decoder"] == "av" and none is None
    )
    prompt.take(session, f"/save {tmp_path / 'a.md'}")
    text = (tmp_path / "a.md").read_text()
    assert text.index(clip) < text.index(picture) < text.index(QUESTION) and "<video>" not in text


def test_a_saved_file_is_not_written_over(session, tmp_path):
    (tmp_path / "a.md").write_text("mine")
    with pytest.raises(FileExistsError):
        prompt.take(session, f"/save {tmp_path / 'a.md'}")
    assert (tmp_path / "a.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/video", "usage: /video PATH"),
        ("/image", "usage: /image PATH"),
        ("/save", "usage: /save FILE"),
        ("/save a.doc", "Known: .json, .md"),
        ("/cubes", "no video has been shown"),
        ("/vidoe", "Did you mean '/video'"),
    ],
)
def test_wrong_commands_say_what_was_meant(session, line, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prompt.take(session, line)


def test_times_are_told(session, clip, capsys):
    prompt.take(session, clip)
    prompt.take(session, QUESTION)
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert list(session.times.stages) == list(STAGES) and all(stage in last for stage in STAGES)
    prompt.take(session, "Which is first?")
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert "decode" not in last and "tower" not in last and "first token" in last
    kept = f"{session.times.kept_tokens} of {session.times.prompt_tokens} prompt tokens were read before"
    assert kept in last


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0031, "3 ms"), (0.9, "900 ms"), (1.236, "1.24 s"), (71.4, "71 s")]
)
def test_durations_in_words(seconds, text):
    assert in_words(seconds) == text


def test_tokens_per_second_leave_the_first_out():
    assert Times(new_tokens=11, rest_seconds=2.0).tokens_per_second == 5
    assert Times(new_tokens=1).tokens_per_second is None


def test_stop_keeps_what_was_said(session, clip):
    session.decoding = Decoding(max_new_tokens=40)
    session.see(clip)
    whole = ChatSession(session.loaded, session.decoding)
    whole.see(clip)
    answer = whole.ask(QUESTION)
    count = iter(range(100))
    part = session.ask(QUESTION, stop=lambda: next(count) >= 5)
    assert session.times.stopped and session.times.new_tokens == 6 and answer.startswith(part) and part
    assert session.dialogue.turns[-1].text == part != answer


# --- what goes wrong does not end the chat ---


def typed(monkeypatch, *lines):
    """The lines are typed one after the other, then the end of input."""
    left = iter(lines)

    def read(_):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_a_video_for_which_memory_is_missing_ends_a_line_only(session, clip, monkeypatch, capsys):
    encode, calls = session.loaded.model.encode_media, []

    def full_at_first(*given):
        calls.append(given)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return encode(*given)

    monkeypatch.setattr(session.loaded.model, "encode_media", full_at_first, raising=False)
    typed(monkeypatch, clip, QUESTION, QUESTION, clip, "And here?")
    assert prompt.converse(session) == 0
    assert (
        f"{clip} could not be encoded and is not shown any longer: out of memory" in capsys.readouterr().out
    )
    asked = [turn.text for turn in session.dialogue.turns if turn.role == "user"]
    assert asked == [QUESTION, "<video>\nAnd here?"]


@pytest.mark.parametrize("state", ["file/below", "folder"])
def test_a_home_that_cannot_be_written_costs_the_lines_only(session, state, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder/quicksviewer/chat_history").mkdir(parents=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / state))
    monkeypatch.setattr(prompt.os, "isatty", lambda _: True)
    typed(monkeypatch, QUESTION)
    assert prompt.converse(session) == 0
    assert "lines are not kept for the next time: " in capsys.readouterr().out
    assert len(session.dialogue.turns) == 2


# --- Ctrl-C, in a process with a terminal ---


class Terminal:
    """A chat on a pseudo terminal."""

    def __init__(self, folder, state, *flags):
        self.fd, other = pty.openpty()
        words = [sys.executable, "-m", "quicksviewer", "chat", "--model-path", str(folder), "--device", "cpu"]
        env = os.environ | {"XDG_STATE_HOME": str(state), "TERM": "dumb", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*words, *flags], stdin=other, stdout=other, stderr=other, env=env, start_new_session=True
        )
        os.close(other)
        self.text, self.seen = "", 0

    def wait_for(self, text: str, seconds: float = 90) -> str:
        """What came since the last wait, up to a text."""
        end, start = time.monotonic() + seconds, self.seen
        while (at := self.text.find(text, start)) < 0:
            assert time.monotonic() < end, f"{text!r} did not come:\n{self.text[-2000:]}"
            self.read()
        self.seen = at + len(text)
        return self.text[start : self.seen]

    def read(self) -> None:
        if select.select([self.fd], [], [], 0.2)[0]:
            self.text += os.read(self.fd, 65536).decode(errors="replace")

    def wait_for_more(self, letters: int, seconds: float = 90) -> None:
        """Until so many letters have come."""
        last, end = len(self.text) + letters, time.monotonic() + seconds
        while len(self.text) < last:
            assert time.monotonic() < end, f"only this came:\n{self.text[-2000:]}"
            self.read()

    def say(self, line: str) -> None:
        os.write(self.fd, line.encode() + b"\n")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_at_prompt(self, answer: str) -> None:
        """Until it is answered: Python sees a signal that comes in the moment before readline waits only
        with the next key."""
        start, end = self.seen, time.monotonic() + 90
        while answer not in self.text[start:]:
            assert time.monotonic() < end, f"no answer to Ctrl-C:\n{self.text[-2000:]}"
            self.interrupt()
            again = time.monotonic() + 3
            while answer not in self.text[start:] and time.monotonic() < again:
                self.read()


def test_ctrl_c_ends_an_answer_and_not_the_chat(loaded, clip, tmp_path):
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    flags = ["--max-new-tokens", "100000", "--temperature", "5", "--context", clip]
    chat = Terminal(tmp_path / "model", tmp_path / "state", *flags)
    try:
        chat.wait_for("> ")
        chat.interrupt_at_prompt("Ctrl-D or exit ends")  # it ends the line
        chat.wait_for("> ")
        for question in (QUESTION, "Which is first?"):
            chat.say(question)
            chat.wait_for(question)
            chat.wait_for_more(40)  # of the answer, which would go on for hours
            chat.interrupt()
            assert " tokens at " in chat.wait_for("· stopped\r\n")
            chat.wait_for("> ")
        chat.say("/history")
        assert "assistant" in chat.wait_for("> ")
        chat.say("exit")
        assert chat.process.wait(timeout=30) == 0
        history = (tmp_path / "state/quicksviewer/chat_history").read_text()
        assert QUESTION in history
    finally:
        chat.process.kill()
        chat.process.wait()
        os.close(chat.fd)
