"""What the page does for visitors, without a browser: answers of a session, bounds, refusals, ends."""

import shutil
import threading
import time
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest
import torch
from chatty import chatty
from tiny_world import fresh, videos

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.cubes.methods import METHODS
from quicksviewer.serve import decoding as decoding_module
from quicksviewer.serve import desk as desk_module
from quicksviewer.serve import session as session_module
from quicksviewer.serve.compare import FROM_FRAMES, _encode, compare
from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.desk import Desk, DeskLimits
from quicksviewer.serve.page import Page
from quicksviewer.serve.rooms import RoomLimits, Rooms
from quicksviewer.serve.session import ChatSession
from quicksviewer.serve.strip import cube_spans
from quicksviewer.serve.uploads import Refused, UploadLimits

SHORT = Decoding(max_new_tokens=6)
LONG = Decoding(max_new_tokens=100_000, temperature=5.0)
QUESTION = "What happens when?"


@pytest.fixture(scope="module")
def loaded(tiny):
    loaded = chatty(fresh(tiny))
    return replace(loaded, processor=loaded.processor.with_media(isolation="process"))


@pytest.fixture
def endless(loaded, monkeypatch):
    """The model whose answers no token ends, whatever is drawn."""
    out_of_words = [loaded.model.get_output_embeddings().out_features]
    monkeypatch.setattr(type(loaded.processor), "stop_ids", property(lambda self: out_of_words))
    return loaded


@pytest.fixture
def upload(tiny, tmp_path):
    """A copy of a file of the corpus, as an upload that may be deleted."""

    def upload(kind="video", name="upload") -> str:
        source = videos(tiny)[0] if kind == "video" else tiny / "data/images/00000_0.png"
        return shutil.copy(source, tmp_path / name)

    return upload


def make(loaded, decoding=SHORT, **limits) -> Desk:
    return Desk(loaded, decoding, DeskLimits(**limits))


def by_session(loaded, paths_and_marks, questions, decoding=SHORT) -> list[str]:
    session = ChatSession(loaded, decoding)
    for path, mark in paths_and_marks:
        session.see(path, mark)
    return [session.ask(question) for question in questions]


# --- the same as a session ---


def test_answers_are_those_of_a_session(loaded, upload):
    desk, clip, picture = make(loaded), upload(), upload("image", "picture")
    assert (desk.show("a", clip), desk.show("a", picture)) == (VIDEO_MARK, IMAGE_MARK)
    questions = [QUESTION, "Which is first?"]
    told = ["".join(desk.ask("a", question)) for question in questions]
    assert told == by_session(loaded, [(clip, VIDEO_MARK), (picture, IMAGE_MARK)], questions)


def test_visitors_do_not_see_each_other(loaded, upload):
    desk, clip = make(loaded), upload()
    desk.show("a", clip)
    assert desk.seen_video("b") is None
    without, with_video = "".join(desk.ask("b", QUESTION)), "".join(desk.ask("a", QUESTION))
    assert without == by_session(loaded, [], [QUESTION])[0] != with_video
    assert with_video == by_session(loaded, [(clip, VIDEO_MARK)], [QUESTION])[0]


def test_what_is_shown_of_a_video_is_what_the_model_has(loaded, upload):
    desk, clip = make(loaded), upload()
    desk.show("a", clip)
    seen, medium = desk.seen_video("a")
    session = ChatSession(loaded)
    session.see(clip, VIDEO_MARK)
    assert seen.spans == cube_spans(session.encode().cuts.cube_of_frame)
    assert seen.times == session.media[0].times.tolist() and len(medium.pixels) == len(seen.times)
    ids = loaded.processor.layout.video_ids(len(seen.times))
    assert seen.tokens == len(ids) and len(seen.ends()) == len(seen.spans)
    assert seen.ends()[-1] == seen.seconds >= seen.times[-1]


# --- comparing ---


@pytest.mark.parametrize("name", FROM_FRAMES)
def test_every_way_to_cut_is_shown_and_answered(loaded, upload, name):
    desk = make(loaded)
    desk.show("a", upload())
    cuttings = desk.compare("a", (name, desk.kind), QUESTION)
    seen, _ = desk.seen_video("a")
    assert [cutting.name for cutting in cuttings] == [name, desk.kind]
    assert all(len(cutting.starts) + 1 == len(seen.spans) for cutting in cuttings)
    assert all(cutting.error >= 1 - 1e-6 and cutting.answer is not None for cutting in cuttings)


def test_the_models_own_way_gives_its_own_cuts_and_answer(loaded, upload):
    desk, clip = make(loaded), upload()
    desk.show("a", clip)
    own, optimal = desk.compare("a", (desk.kind, "optimal"), QUESTION)
    assert [0, *own.starts] == [start for start, _ in desk.seen_video("a")[0].spans]
    assert own.answer == by_session(loaded, [(clip, VIDEO_MARK)], [QUESTION])[0]
    assert optimal.error == pytest.approx(1.0)
    room = desk.rooms.find("a")
    assert room.session.dialogue.turns == (), "comparing is no part of the conversation"
    assert desk.kind != "optimal" and loaded.model.cubing.config.kind == desk.kind


def test_given_cuts_reach_the_language_model(loaded, upload):
    """Cut by its own cuts as if they were given, a video becomes the same tokens."""
    session = ChatSession(loaded)
    session.see(upload(), VIDEO_MARK)
    own, medium = session.encode(), session.media[0]
    tokens = loaded.model.vision_tower(medium.pixels)
    starts = own.cuts.first_frame.tolist()[1:]
    given = _encode(loaded.model, medium, tokens, starts)
    assert (given.visual - own.visual).abs().max() < 1e-5
    moved = _encode(loaded.model, medium, tokens, list(range(1, len(starts) + 1)))
    assert (moved.visual - own.visual).abs().max() > 1e-4


def test_a_comparison_ends_as_an_answer_does(endless, upload):
    """Of two endless answers the first ends when its time is over, the second as well; Stop ends the one and
    leaves out the other."""
    desk = make(endless, LONG, answer_seconds=0.3)
    desk.show("a", upload())
    ways = ("uniform", desk.kind)
    for cutting in desk.compare("a", ways, QUESTION):
        assert (bool(cutting.answer), cutting.note) == (True, "stopped")
    desk = make(endless, LONG)
    desk.show("a", upload())
    stopping = threading.Timer(0.3, desk.stop, ["a"])
    stopping.start()
    first, second = desk.compare("a", ways, QUESTION)
    assert first.answer and first.note == "stopped"
    assert (second.answer, second.note) == (None, "no answer: stopped") and second.starts


def test_why_there_is_no_answer_is_said(loaded, upload, monkeypatch):
    desk = make(loaded)
    desk.show("a", upload())
    cubes = len(desk.seen_video("a")[0].spans)
    monkeypatch.setitem(METHODS, "uniform", lambda clip: [1])
    one, own = desk.compare("a", ("uniform", desk.kind), QUESTION)
    assert one.note == f"no answer: 2 cubes, and the model reads {cubes} of this video"
    assert one.answer is None and own.answer and own.note == ""


def test_an_unknown_way_is_refused(loaded, upload):
    session = ChatSession(loaded)
    session.see(upload(), VIDEO_MARK)
    with pytest.raises(ValueError, match="unknown way to cut 'codec'"):
        compare(loaded, session.media[0], ["codec"])


# --- bounds ---


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("", "Type a question"),
        (" \n", "Type a question"),
        ("x" * 41, "40 characters"),
        ("see <video>", "model's own format"),
        ("<visual>", "model's own format"),
    ],
)
def test_questions_are_bounded(loaded, question, words):
    desk = make(loaded, rooms=RoomLimits(max_question=40))
    with pytest.raises(Refused, match=words):
        list(desk.ask("a", question))


def test_conversations_are_bounded(loaded, upload):
    desk = make(loaded, rooms=RoomLimits(max_turns=2, max_media=1))
    desk.show("a", upload())
    with pytest.raises(Refused, match="enough files"):
        desk.show("a", upload(name="other"))
    for _ in range(2):
        list(desk.ask("a", QUESTION))
    with pytest.raises(Refused, match="long enough"):
        list(desk.ask("a", QUESTION))
    desk.clear("a")
    assert "".join(desk.ask("a", QUESTION)) == by_session(loaded, [], [QUESTION])[0]


def test_an_answer_takes_no_longer_than_it_may(endless):
    desk = make(endless, LONG, answer_seconds=0.3)
    started = time.monotonic()
    assert "".join(desk.ask("a", QUESTION)) and time.monotonic() - started < 20
    assert desk.rooms.find("a").session.times.stopped


def test_stop_ends_an_answer_and_what_was_said_stays(endless):
    desk = make(endless, LONG)
    told = []
    for piece in desk.ask("a", QUESTION):
        told.append(piece)
        if len(told) == 3:
            with pytest.raises(Refused, match="One thing at a time"):
                next(desk.ask("a", "And then?"))
            desk.stop("a")
    assert desk.rooms.find("a").session.dialogue.turns[-1].text == "".join(told).strip()
    desk.decoding = desk.rooms.find("a").session.decoding = SHORT
    assert isinstance("".join(desk.ask("a", "And then?")), str)


def test_an_answer_ends_when_nobody_listens(endless):
    desk = make(endless, LONG)
    pieces = desk.ask("a", QUESTION)
    next(pieces)
    pieces.close()
    assert not desk.rooms.find("a").lock.locked()
    assert not [thread for thread in threading.enumerate() if thread.name == "answer"]


def test_leaving_within_an_answer_ends_it_and_frees_the_room(endless, upload):
    desk, clip = make(endless, LONG), upload()
    desk.show("a", clip)
    pieces = desk.ask("a", QUESTION)
    next(pieces)
    leaving = threading.Thread(target=desk.clear, args=("a",))
    leaving.start()
    list(pieces)
    leaving.join(timeout=20)
    assert not leaving.is_alive() and len(desk.rooms) == 0


def test_what_the_model_has_no_room_for_is_refused(loaded, upload):
    """By both numbers, and the page gives the question and its files back."""
    picture = upload("image", "picture")
    session = ChatSession(loaded, SHORT)
    session.see(picture, IMAGE_MARK)
    session.ask(QUESTION)
    length = session.times.prompt_tokens
    desk = make(replace(loaded, context_length=length))
    (told,) = Page(desk, same="same").ask("a", {"text": QUESTION, "files": [picture]})
    assert f"This takes {length} tokens, and the model has room for {length}." in told[-1]
    assert told[1] == {"text": QUESTION, "files": [picture]}
    room = desk.rooms.find("a").session
    assert (room.media, room.dialogue.waiting, told[0]) == ([], (), [])
    assert "".join(desk.ask("a", "Hi?")) == by_session(loaded, [], ["Hi?"])[0]
    desk.show("a", upload())
    for refused in (lambda: list(desk.ask("a", QUESTION)), lambda: desk.compare("a", ("uniform",), QUESTION)):
        with pytest.raises(Refused, match=rf"and the model has room for {length}\. Please begin a new"):
            refused()


# --- what is told of errors ---


def test_errors_are_told_by_an_id_alone(loaded, upload, monkeypatch, caplog):
    desk = make(loaded)

    def fails(*_):
        raise RuntimeError("secret /etc/path")

    monkeypatch.setattr(desk_module, "check_upload", fails)
    with pytest.raises(Refused) as refused:
        desk.show("a", upload())
    told = str(refused.value)
    assert "secret" not in told and told.startswith("Something went wrong here. Reference: ")
    assert told.split()[-1] in caplog.text and "secret /etc/path" in caplog.text


def test_a_file_that_cannot_be_encoded_does_not_break_the_conversation(loaded, upload, monkeypatch):
    desk, picture = make(loaded), upload("image", "picture")
    desk.show("a", picture)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(loaded.model, "encode_media", full, raising=False)
        with pytest.raises(Refused, match="Reference: "):
            desk.show("a", upload())
    assert len(desk.rooms.find("a").session.media) == 1
    told = "".join(desk.ask("a", QUESTION))
    assert told == by_session(loaded, [(picture, IMAGE_MARK)], [QUESTION])[0]


def test_a_refused_file_leaves_the_conversation_as_it_was(loaded, upload, tmp_path):
    desk = make(loaded, upload=UploadLimits(max_seconds=0.5))
    with pytest.raises(Refused, match="longer than"):
        desk.show("a", upload())
    assert desk.seen_video("a") is None
    with pytest.raises(Refused, match="Drop a video first"):
        desk.compare("a", ("uniform", "optimal"))


# --- rooms ---


def test_rooms_are_few_and_free_themselves(loaded, upload):
    desk = make(loaded, rooms=RoomLimits(max_rooms=2, idle_seconds=100))
    clip, other = upload(), upload(name="other")
    desk.show("a", clip)
    desk.show("b", other)
    with pytest.raises(Refused, match="All places are taken"):
        list(desk.ask("c", QUESTION))
    desk.rooms.find("a").used -= 101
    list(desk.ask("c", QUESTION))
    assert desk.rooms.find("a") is None and len(desk.rooms) == 2
    assert not Path(clip).exists() and Path(other).exists()


def test_a_room_in_use_is_not_swept(loaded):
    rooms = Rooms(lambda: ChatSession(loaded), RoomLimits(idle_seconds=10))
    room = rooms.enter("a")
    room.used -= 11
    with room.lock:
        rooms.sweep()
        assert rooms.find("a") is room
    rooms.sweep()
    assert len(rooms) == 0


def test_equal_uploads_stay_while_somebody_uses_them(loaded, upload):
    desk, clip = make(loaded), upload()
    desk.show("a", clip)
    desk.show("b", clip)
    desk.clear("a")
    assert Path(clip).exists()
    with desk.kept_tidy():
        pass
    assert not Path(clip).exists() and len(desk.rooms) == 0


@pytest.mark.parametrize("name", ["max_rooms", "idle_seconds", "max_media", "max_turns", "max_question"])
def test_limits_of_rooms_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        RoomLimits(**{name: 0})
    with pytest.raises(ValueError, match="answer_seconds"):
        DeskLimits(answer_seconds=0)


# --- the page's functions ---


def test_files_of_a_question_that_is_refused_wait_in_the_box(loaded, upload, tmp_path):
    """Of a good and a bad file the good one is not shown behind the visitor's back: it is in the box, and in
    the chat when it is asked about."""
    desk = make(loaded)
    page, picture = Page(desk, same="same"), upload("image", "picture")
    (tmp_path / "bad").write_text("words")
    (told,) = page.ask("a", {"text": " ", "files": [picture]})
    assert told[1]["files"] == [picture] and "Type a question" in told[-1]
    assert desk.rooms.find("a").session.media == []
    (told,) = page.ask("a", {"text": QUESTION, "files": [picture, str(tmp_path / "bad")]})
    assert told[1] == {"text": QUESTION, "files": [picture]} and "This is not" in told[-1]
    assert desk.rooms.find("a").session.media == []
    *_, told = page.ask("a", told[1])
    assert len(desk.rooms.find("a").session.media) == 1
    assert told[0][0] == {"role": "user", "content": {"path": picture}} and told[1]["files"] == []
    answer = by_session(loaded, [(upload("image", "again"), IMAGE_MARK)], [QUESTION])[0]
    assert told[0][-1] == {"role": "assistant", "content": escape(answer, quote=False)}


def test_a_question_that_is_stopped_before_a_word_is_in_the_box_again(loaded, upload, monkeypatch):
    desk = make(loaded)
    page, picture = Page(desk, same="same"), upload("image", "picture")
    monkeypatch.setattr(desk_module, "until", lambda *_: lambda: True)
    for module in (session_module, decoding_module):
        monkeypatch.setattr(module, "decoded", lambda *_: "")
    *_, told = page.ask("a", {"text": QUESTION, "files": [picture]})
    assert (told[0], told[1]) == ([], {"text": QUESTION, "files": [picture]}) and "stopped" in told[-1]
    assert desk.rooms.find("a").session.media == []


def test_what_is_said_is_no_markup(loaded):
    *_, told = Page(make(loaded), same=None).ask("a", {"text": "<b>Who</b> & 'why'?"})
    assert told[0][0]["content"] == "&lt;b&gt;Who&lt;/b&gt; &amp; 'why'?"
