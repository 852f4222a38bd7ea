"""The prompt of the terminal: questions, paths of media, and commands that begin with a slash."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.serve.dialogue import SUFFIXES
from quicksviewer.serve.session import ChatSession
from quicksviewer.serve.strip import cube_spans, save_strip
from quicksviewer.utils.config import to_plain
from quicksviewer.utils.data_util import MediaError
from quicksviewer.utils.registry import lookup

HISTORY_LINES = 1000
"""Lines that are remembered from one run to the next."""
BAR_CELLS = 60
"""Width of the longest bar of `/cubes`."""

console = Console(highlight=False, soft_wrap=True)


class Leave(Exception):
    """The user has asked to end."""


def converse(session: ChatSession) -> int:
    """Read questions, paths and commands until the end of input. Ctrl-C ends an answer or a line only."""
    remember_lines()
    console.print("[dim]/help shows what can be typed here[/dim]")
    while True:
        try:
            take(session, input("> ").strip())
        except (EOFError, Leave):
            print()
            return 0
        except KeyboardInterrupt:
            console.print("\n[dim](stopped; Ctrl-D or exit ends)[/dim]")
        except (MediaError, ValueError, OSError, RuntimeError) as error:  # RuntimeError: out of memory
            console.print(f"[red]{escape(str(error))}[/red]")


def take(session: ChatSession, line: str) -> None:
    """Do what one line says."""
    word, _, rest = line.partition(" ")
    if line in ("exit", "quit"):
        raise Leave
    if word in COMMANDS:
        COMMANDS[word].run(session, rest.strip())
    elif Path(line).suffix.lower() in SUFFIXES:
        show(session, line)
    elif word.startswith("/"):
        lookup(COMMANDS, word, "command")  # which it is not: the error says what was meant
    elif line:
        reply(session, line)


def reply(session: ChatSession, question: str) -> str:
    """Ask, print the answer while it comes, then where its time went."""
    with stopped_by_interrupt(session) as stop:
        text = session.ask(question, lambda piece: print(piece, end="", flush=True), stop)
    print()
    console.print(f"[dim]{session.times}[/dim]")
    return text


@contextmanager
def stopped_by_interrupt(session: ChatSession) -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C makes the function true that is given here, once an answer has begun to come; before
    that, and at the second time, it is a KeyboardInterrupt as ever."""
    asked = []

    def interrupt(*_):
        if asked or not session.times.new_tokens:
            raise KeyboardInterrupt
        asked.append(True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def remember_lines() -> None:
    """Arrow keys and lines of earlier runs, where the terminal and the system have them."""
    try:
        import readline
    except ImportError:  # Windows
        return
    if not os.isatty(0):
        return
    import atexit

    readline.set_history_length(HISTORY_LINES)
    try:
        path = history_file()
        if path.stat().st_size:
            readline.read_history_file(path)
        readline.write_history_file(path)  # whether it can be written is known now, not at the end
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        console.print(f"[dim]lines are not kept for the next time: {escape(str(error))}[/dim]")
        return
    atexit.register(readline.write_history_file, path)


def history_file() -> Path:
    """The file of earlier lines, which is there and for this user alone."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    path = state / "quicksviewer" / "chat_history"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    return path


# Commands: functions of the session and what stands behind the word


def show(session: ChatSession, path: str, mark: str | None = None) -> None:
    session.see(path, mark)
    console.print(f"({escape(path)} will be shown with the next question)")


def show_image(session: ChatSession, path: str) -> None:
    show(session, _given(path, "/image PATH"), IMAGE_MARK)


def show_video(session: ChatSession, path: str) -> None:
    show(session, _given(path, "/video PATH"), VIDEO_MARK)


def print_cubes(session: ChatSession, path: str) -> None:
    videos = [place for place, medium in enumerate(session.media) if medium.is_video]
    if not videos:
        raise ValueError("no video has been shown; /video PATH shows one")
    for place in videos:
        medium = session.media[place]
        spans = cube_spans(session.cuts_of(place).cube_of_frame)
        console.print(f"{len(medium.times)} frames, {len(spans)} cubes:")
        list_cubes(medium.times, spans)
        if path:
            save_strip(path, medium.pixels, medium.times, spans, [])
            console.print(f"picture written to {escape(path)}")


def list_cubes(times_N, spans: list[tuple[int, int]]) -> None:
    """A line for each cube: when it begins, how many frames it has, a bar as long."""
    cells = min(1.0, BAR_CELLS / max(stop - start for start, stop in spans))
    for cube, (start, stop) in enumerate(spans):
        bar = "#" * max(1, round((stop - start) * cells))
        console.print(f"  cube {cube:2}  {float(times_N[start]):6.1f} s  {stop - start:3} frames  {bar}")


def clear(session: ChatSession, _: str) -> None:
    session.clear()
    console.print("(a new conversation)")


def print_history(session: ChatSession, _: str) -> None:
    for turn in session.dialogue.turns:
        console.print(f"[bold]{turn.role}[/bold] {escape(turn.text)}")
    for _, path in session.dialogue.waiting:
        console.print(f"({escape(path)} will be shown with the next question)")


def save(session: ChatSession, path: str) -> None:
    path = Path(_given(path, "/save FILE"))
    write = lookup(WRITERS, path.suffix.lower(), "ending of a file to save to")
    text = write(session)
    with path.open("x", encoding="utf-8") as file:  # what is there already is not written over
        file.write(text)
    console.print(f"written to {escape(str(path))}")


def as_json(session: ChatSession) -> str:
    """Turns, and media with the plan by which their frames were taken and who decoded them."""
    dialogue = session.dialogue
    turns = [{"role": turn.role, "text": turn.text} for turn in dialogue.turns]
    media = [
        {"mark": mark, "path": path, "plan": to_plain(medium.plan) if medium.plan else None}
        for (mark, path), medium in zip(dialogue.media, session.media, strict=False)  # later ones wait
    ]
    return json.dumps({"turns": turns, "media": media}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(session: ChatSession) -> str:
    dialogue = session.dialogue
    media = (path for _, path in dialogue.media)
    lines = []
    for turn in dialogue.turns:
        shown = [next(media) for _ in range(turn.text.count(IMAGE_MARK) + turn.text.count(VIDEO_MARK))]
        text = turn.text.replace(f"{IMAGE_MARK}\n", "").replace(f"{VIDEO_MARK}\n", "")
        lines += [f"**{turn.role}**", *(f"`{path}`" for path in shown), text]
    return "\n\n".join(lines) + "\n"


WRITERS: dict[str, Callable[[ChatSession], str]] = {".json": as_json, ".md": as_markdown}


def print_help(session: ChatSession, _: str) -> None:
    width = max(len(f"{word} {command.takes}") for word, command in COMMANDS.items())
    for word, command in COMMANDS.items():
        console.print(f"  {f'{word} {command.takes}':{width}}  {command.does}")
    console.print(
        f"  {'exit, Ctrl-D':{width}}  end\n"
        f"  {'Ctrl-C':{width}}  end an answer; what has been said of it stays\n"
        "Anything else is a question, or the path of a medium to show with the next one."
    )


def _given(path: str, usage: str) -> str:
    if not path:
        raise ValueError(f"usage: {usage}")
    return path


@dataclass(frozen=True)
class Command:
    run: Callable[[ChatSession, str], None]
    takes: str
    does: str


COMMANDS = {
    "/image": Command(show_image, "PATH", "show an image with the next question"),
    "/video": Command(show_video, "PATH", "show a video with the next question"),
    "/cubes": Command(print_cubes, "[PNG]", "how the videos are cut, also as a picture"),
    "/history": Command(print_history, "", "what has been said"),
    "/clear": Command(clear, "", "begin a new conversation"),
    "/save": Command(save, "FILE", "write what has been said: .json or .md"),
    "/help": Command(print_help, "", "this list"),
}
