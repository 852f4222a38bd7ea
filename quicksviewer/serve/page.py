"""The page: drop a video, see it cut into cubes, ask about it, compare two ways to cut it.

What it does stands in `desk.py`, who may reach it in `guard.py`; here are its components and their wiring.
"""

from collections.abc import Callable, Iterator
from html import escape

from quicksviewer.constants import VIDEO_MARK
from quicksviewer.serve import cube_view
from quicksviewer.serve.compare import FROM_FRAMES
from quicksviewer.serve.desk import Desk
from quicksviewer.serve.dialogue import SUFFIXES
from quicksviewer.serve.uploads import Refused
from quicksviewer.utils.registry import require

OTHERS = ("optimal", "uniform")
"""What the model's own way to cut is compared with at first: the one of these that it is not."""
QUEUE = 16
"""Requests that wait at a time; more are told so."""


class Page:
    """What is done when something on the page is used. Functions of a visitor's key and of components'
    values, which give the new values of others; they end in a state of the page, never in an error."""

    def __init__(self, desk: Desk, same):
        """`same` stands for a component that stays as it is."""
        self.desk, self.same = desk, same

    def drop(self, key: str, path: str | None):
        """A video was dropped: a new conversation about it. (video, figures, strip, chat, times)"""
        self.desk.clear(key)
        try:
            self.desk.show(key, path, (VIDEO_MARK,))
            return self.same, *self._cubes(key), [], ""
        except Refused as refused:
            return None, "", cube_view.notice(str(refused)), [], ""

    def ask(self, key: str, box: dict) -> Iterator:
        """A question, and files that are shown with it. (chat, box, figures, strip, times) while the answer
        grows, and when it has ended. What cannot be asked stays in the box, and its files with it, but one
        that cannot be used."""
        text, files, empty = box.get("text") or "", list(box.get("files") or []), {"text": "", "files": []}
        before = self._count(key)
        try:
            self.desk.check(key, text)
            self._show(key, files)
            room, answer = self.desk.rooms.enter(key), ""
            asked = [{"role": "user", "content": {"path": path}} for path in files]
            asked = [*room.messages, *asked, _said("user", text)]
            for piece in self.desk.ask(key, text):
                answer += piece
                yield [*asked, _said("assistant", answer)], empty, self.same, self.same, ""
            times, kept = room.session.times, empty
            if answer or not times.stopped:
                room.messages[:] = [*asked, _said("assistant", answer or "(no answer)")]
            else:
                self.desk.take_back(key, before)
                kept = {"text": text, "files": files}
            told = f'<div class="qv-times">{escape(str(times))}</div>'
            yield list(room.messages), kept, *self._cubes(key), told
        except Refused as refused:
            self.desk.take_back(key, before)
            room = self.desk.rooms.find(key)
            messages, kept = list(room.messages) if room else [], {"text": text, "files": files}
            yield messages, kept, self.same, self.same, cube_view.notice(str(refused))

    def stop(self, key: str) -> None:
        self.desk.stop(key)

    def leave(self, key: str) -> None:
        """The visitor has closed the page."""
        self.desk.clear(key)

    def clear(self, key: str):
        """Nothing is left of the conversation. (video, figures, strip, chat, box, times, comparison)"""
        self.desk.clear(key)
        return None, "", cube_view.NOTHING, [], {"text": "", "files": []}, "", ""

    def compare(self, key: str, one: str, other: str, question: str) -> str:
        try:
            cuttings = self.desk.compare(key, (one, other), question.strip())
            seen, medium = self.desk.seen_video(key)
            return cube_view.comparison(medium.pixels, seen.times, cuttings)
        except Refused as refused:
            return cube_view.notice(str(refused))

    def _count(self, key: str) -> int:
        """Media of the visitor's conversation."""
        room = self.desk.rooms.find(key)
        return len(room.session.media) if room else 0

    def _show(self, key: str, files: list) -> None:
        """Show files with the next question. One that cannot be shown is taken out of the list."""
        for path in list(files):
            try:
                self.desk.show(key, path)
            except Refused:
                files.remove(path)
                raise

    def _cubes(self, key: str) -> tuple[str, str]:
        """Figures and strip of the visitor's last video."""
        if (found := self.desk.seen_video(key)) is None:
            return "", cube_view.NOTHING
        video, medium = found
        times = self.desk.rooms.find(key).session.times
        return cube_view.figures(video, times), cube_view.strip(medium.pixels, video)


def _said(role: str, text: str) -> dict:
    """A message. The chat takes what it is given for HTML, also where it renders no Markdown."""
    return {"role": role, "content": escape(text, quote=False)}


def build(desk: Desk, name: str):
    """The page as gradio's Blocks. `name`: of the model, as it is shown."""
    gr = require("gradio", "serve")
    page = Page(desk, gr.skip())
    head = "<div class='qv-head'><h1>quicksviewer</h1><p>Drop a video, see it cut into cubes, ask about it."
    head += f"</p><code>{escape(name)}</code></div>"
    bounds = desk.limits.rooms
    with gr.Blocks(
        title="quicksviewer",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(300, int(bounds.idle_seconds)),
    ) as blocks:
        gr.HTML(head, js_on_load=None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                video = gr.Video(label="Video", sources=["upload"], height=292, elem_id="video")
            with gr.Column(scale=6, min_width=320):
                figures = gr.HTML("", js_on_load=None, elem_id="figures")
        strip = gr.HTML(cube_view.NOTHING, js_on_load=None, elem_id="strip")
        with gr.Tab("Ask"):
            chat = _chat(gr)
            times = gr.HTML("", js_on_load=None, elem_id="times")
            box = _box(gr)
            with gr.Row(elem_id="tools"):
                stop = gr.Button("Stop", elem_id="stop", size="md")
                clear = gr.Button("New conversation", elem_id="clear", size="md")
        with gr.Tab("Compare two cuts"):
            choices = _choices(gr, desk)
            result = gr.HTML("", js_on_load=None, elem_id="comparison")
        wire = _Wires(gr, page)
        wire(video.upload, page.drop, [video], [video, figures, strip, chat, times])
        everything = [video, figures, strip, chat, box, times, result]
        wire(video.clear, page.clear, [], everything)
        wire(chat.clear, page.clear, [], everything, at_once=True)
        wire(clear.click, page.clear, [], everything, at_once=True)
        wire(stop.click, page.stop, [], [], at_once=True)
        wire.stream(box.submit, page.ask, [box], [chat, box, figures, strip, times])
        *fields, button, halt = choices
        wire(button.click, page.compare, fields, [result])
        wire(halt.click, page.stop, [], [], at_once=True)
        blocks.unload(wire.keyed(page.leave))
    return blocks.queue(max_size=QUEUE, default_concurrency_limit=1)


def _chat(gr):
    return gr.Chatbot(
        elem_id="chat",
        height=360,
        show_label=False,
        buttons=["copy"],
        render_markdown=False,
        allow_tags=False,
        placeholder="Ask about the video, or add an image to your question.",
    )


def _box(gr):
    return gr.MultimodalTextbox(
        elem_id="box",
        show_label=False,
        placeholder="What happens when?",
        sources=["upload"],
        file_types=sorted(SUFFIXES),
        file_count="multiple",
        max_plain_text_length=10**6,
    )


def _choices(gr, desk: Desk) -> tuple:
    """Two ways to cut, a question, and buttons to begin and to stop."""

    def note(name: str) -> str:
        return f"{name} (this model)" if name == desk.kind else name

    names = [(note(name), name) for name in FROM_FRAMES]
    own = desk.kind if desk.kind in FROM_FRAMES else FROM_FRAMES[0]
    other = next(name for name in OTHERS if name != own)
    with gr.Row(equal_height=True):
        one = gr.Dropdown(names, value=own, label="One way", elem_id="one")
        two = gr.Dropdown(names, value=other, label="The other", elem_id="other")
        question = gr.Textbox(label="Question to both (optional)", elem_id="both", scale=2)
        button = gr.Button("Compare", variant="primary", elem_id="compare", min_width=120)
        stop = gr.Button("Stop", elem_id="stop-compare", min_width=80)
    return one, two, question, button, stop


class _Wires:
    """Events to functions of a visitor's key."""

    def __init__(self, gr, page: Page):
        self.gr, self.page = gr, page

    def keyed(self, function: Callable) -> Callable:
        def call(request: self.gr.Request, *values):
            return function(request.session_hash, *values)

        return call

    def keyed_stream(self, function: Callable) -> Callable:
        def call(request: self.gr.Request, *values):
            yield from function(request.session_hash, *values)

        return call

    def __call__(self, event, function, inputs, outputs, at_once: bool = False) -> None:
        """What uses the model goes one after the other; what is `at_once` does not wait for it."""
        self._join(event, self.keyed(function), inputs, outputs, at_once)

    def stream(self, event, function, inputs, outputs) -> None:
        self._join(event, self.keyed_stream(function), inputs, outputs, False)

    def _join(self, event, call, inputs, outputs, at_once: bool) -> None:
        limits = (
            {"concurrency_limit": None} if at_once else {"concurrency_limit": 1, "concurrency_id": "model"}
        )
        event(
            call,
            inputs,
            outputs,
            show_progress="hidden" if at_once else "minimal",
            api_visibility="private",
            **limits,
        )
