"""A chat session equals generating by hand; media are seen once; chance is the session's own."""

from dataclasses import replace

import pytest
import torch
from chatty import chatty
from tiny_world import BACKBONES, fresh, videos

from quicksviewer.conversation import Turn
from quicksviewer.serve.decoding import Decoding, Pieces
from quicksviewer.serve.session import ChatSession, TooLong
from quicksviewer.utils.data_util import MediaError

SHORT = dict(max_new_tokens=12)
DECODINGS = {
    "greedy": Decoding(**SHORT),
    "beams": Decoding(num_beams=3, **SHORT),
    "no repeats": Decoding(repetition_penalty=1.5, **SHORT),
    **{f"drawn {seed}": Decoding(temperature=3.0, seed=seed, max_new_tokens=60) for seed in range(3)},
}
QUESTION = "What happens when?"


@pytest.fixture(scope="module", params=BACKBONES)
def loaded(request, tiny):
    loaded = fresh(tiny, request.param)
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="module")
def clip(tiny) -> str:
    return str(videos(tiny)[0])


@pytest.fixture(scope="module")
def picture(tiny) -> str:
    return str(tiny / "data/images/00000_0.png")


def by_hand(loaded, texts, media=(), **settings) -> str:
    """The greedy answer to a conversation, from the model itself."""
    turns = [Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]
    processor = loaded.processor
    batch = processor.batch([processor.encode_turns(turns, media, generation=True)])
    ends = dict(eos_token_id=processor.stop_ids, pad_token_id=processor.pad_id)
    out = loaded.model.generate(**batch, **ends, **{**SHORT, "do_sample": False, **settings})
    return loaded.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def session_with(loaded, *paths, decoding="greedy") -> ChatSession:
    session = ChatSession(loaded, DECODINGS[decoding])
    for path in paths:
        session.see(path)
    return session


@pytest.fixture
def seen(loaded):
    """How many frames each call of the vision tower got."""
    frames = []
    hook = loaded.model.vision_tower.register_forward_hook(
        lambda _, inputs, __: frames.append(len(inputs[0]))
    )
    yield frames
    hook.remove()


# --- equal to generating by hand ---


def test_an_answer_is_that_of_generate(loaded, clip):
    video = loaded.processor.load_video(clip)
    assert session_with(loaded, clip).ask(QUESTION) == by_hand(loaded, [f"<video>\n{QUESTION}"], [video])
    assert session_with(loaded).ask("Hello?") == by_hand(loaded, ["Hello?"])


@pytest.mark.parametrize("decoding", ["beams", "no repeats"])
def test_settings_reach_generate(loaded, clip, decoding):
    video, settings = loaded.processor.load_video(clip), DECODINGS[decoding]
    answer = session_with(loaded, clip, decoding=decoding).ask(QUESTION)
    chosen = dict(num_beams=settings.num_beams, repetition_penalty=settings.repetition_penalty)
    assert answer == by_hand(loaded, [f"<video>\n{QUESTION}"], [video], **chosen)


def test_a_later_turn_is_that_of_the_whole_conversation(loaded, clip):
    session, texts = session_with(loaded, clip), []
    video = loaded.processor.load_video(clip)
    for question in (QUESTION, "Which is first?", "Which is last?"):
        texts.append(question if texts else f"<video>\n{question}")
        answer = session.ask(question)
        assert answer == by_hand(loaded, texts, [video])
        texts.append(answer or "(no answer)")
    assert [turn.text for turn in session.dialogue.turns] == texts


def test_an_image_and_a_video_together(loaded, clip, picture):
    video, image = loaded.processor.load_video(clip), loaded.processor.load_image(picture)
    answer = session_with(loaded, picture, clip).ask(QUESTION)
    assert answer == by_hand(loaded, [f"<image>\n<video>\n{QUESTION}"], [image, video])
    answer = session_with(loaded, clip, picture).ask(QUESTION)
    assert answer == by_hand(loaded, [f"<video>\n<image>\n{QUESTION}"], [video, image])


# --- media are seen once ---


def test_media_go_through_the_tower_once(loaded, tiny, clip, picture, seen):
    other = str(videos(tiny)[1])
    session = session_with(loaded, clip, picture)
    assert (session.encoded_videos, seen, session.encoded) == (0, [], None)
    for question in (QUESTION, "Which is first?"):
        session.ask(question)
        assert session.encoded_videos == 2 and sum(seen) == sum(len(m.pixels) for m in session.media)
    session.see(other)
    for _ in range(2):
        session.ask("And here?")
        assert session.encoded_videos == 3 and sum(seen) == sum(len(m.pixels) for m in session.media)
    assert [medium.is_video for medium in session.media] == [True, False, True]


def test_media_that_come_later_are_as_if_they_had_come_together(loaded, tiny, clip, picture):
    session = session_with(loaded, clip)
    first = session.ask(QUESTION)
    session.see(picture)
    session.see(str(videos(tiny)[1]))
    answer = session.ask("And here?")
    texts = [f"<video>\n{QUESTION}", first or "(no answer)", "<image>\n<video>\nAnd here?"]
    assert answer == by_hand(loaded, texts, session.media)
    together = session_with(loaded, clip, picture, str(videos(tiny)[1]))
    together.ask(QUESTION)
    for name in ("visual", "times", "keep"):
        torch.testing.assert_close(getattr(session.encoded, name), getattr(together.encoded, name))
    for name in ("cube_of_frame", "first_frame", "mask"):
        assert torch.equal(getattr(session.encoded.cuts, name), getattr(together.encoded.cuts, name))
    assert session.encoded.cuts.cubes == together.encoded.cuts.cubes


def test_a_video_can_be_encoded_before_it_is_asked_about(loaded, clip, seen):
    session = session_with(loaded, clip)
    cuts = session.encode().cuts
    assert len(cuts.cube_of_frame) == len(session.media[0].pixels) == sum(seen)
    assert session.ask(QUESTION) == session_with(loaded, clip).ask(QUESTION)
    assert session_with(loaded).encode() is None


# --- streaming ---


@pytest.mark.parametrize("decoding", DECODINGS)
def test_the_pieces_joined_are_the_answer(loaded, clip, decoding):
    pieces = []
    session = session_with(loaded, clip, decoding=decoding)
    answers = [session.ask(question, pieces.append) for question in (QUESTION, "Which is first?")]
    assert "".join(pieces) == "".join(answers) and "" not in pieces
    alone = session_with(loaded, clip, decoding=decoding)
    assert [alone.ask(question) for question in (QUESTION, "Which is first?")] == answers


@pytest.mark.parametrize(
    "text",
    [
        "red\n  blue x",
        "a\n b",
        "\n a \n",
        "Größe 東京 ☂ ok",
        "00 red\n05 blue",
        "😀😀 x",
        "東京です。red",
        "",
    ],
)
def test_no_blank_and_no_part_of_a_letter_is_lost(loaded, text):
    pieces = []
    streamer = Pieces(loaded.tokenizer, pieces.append)
    streamer.put(torch.tensor([[1, 2, 3]]))  # a prompt
    for token in loaded.tokenizer(text, add_special_tokens=False)["input_ids"]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == text.strip() and all(pieces)


def test_pieces_come_while_the_answer_is_made(loaded, clip):
    steps, came_at = [], []
    hook = loaded.model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    try:
        session_with(loaded, clip, decoding="drawn 1").ask(QUESTION, lambda _: came_at.append(len(steps)))
    finally:
        hook.remove()
    assert len(came_at) > 3 and came_at[0] < len(steps) / 2


# --- chance ---


def test_greedy_is_the_default_whatever_the_checkpoint_says(loaded, clip):
    plain = ChatSession(loaded, Decoding(**SHORT))
    plain.see(clip)
    answer = plain.ask(QUESTION)
    settings = loaded.model.generation_config
    before = settings.to_dict()
    try:
        settings.update(do_sample=True, temperature=2.0, top_k=5, repetition_penalty=3.0, num_beams=2)
        assert session_with(loaded, clip).ask(QUESTION) == answer
    finally:
        settings.update(**before)
    assert Decoding() == Decoding(temperature=0.0)


def test_a_seed_decides_what_is_drawn(loaded, clip):
    answers = {}
    for name in ("drawn 0", "drawn 1", "drawn 2", "drawn 0", "drawn 1"):
        session = session_with(loaded, clip, decoding=name)
        told = [session.ask(QUESTION), session.ask("And then?")]
        assert answers.setdefault(name, told) == told
    assert len({tuple(told) for told in answers.values()}) == 3


def test_sessions_beside_each_other_do_not_disturb_each_other(loaded, clip):
    alone = session_with(loaded, clip, decoding="drawn 0")
    expected = [alone.ask(QUESTION), alone.ask("And then?")]
    one, other = (session_with(loaded, clip, decoding="drawn 0") for _ in range(2))
    state = torch.get_rng_state()
    assert [one.ask(QUESTION), other.ask(QUESTION)] == [expected[0]] * 2
    assert [other.ask("And then?"), one.ask("And then?")] == [expected[1]] * 2
    assert torch.equal(torch.get_rng_state(), state), "the program's own generator is left alone"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"top_p": 0.9}, "need a temperature"),
        ({"top_k": 5}, "need a temperature"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must.* 1.5"),
        ({"temperature": 1.0, "top_k": -1}, "top_k=-1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


# --- what the model has room for ---


def roomy(loaded, path: str, room: int, most: int = 12) -> tuple[ChatSession, int]:
    """A session with a medium to which QUESTION is asked next, where the model has room for `room` tokens
    behind that; and the tokens of that prompt."""
    medium = loaded.processor.load_video(path)
    turns = [Turn("user", f"<video>\n{QUESTION}")]
    length = len(loaded.processor.encode_turns(turns, [medium], generation=True)["input_ids"])
    session = ChatSession(replace(loaded, context_length=length + room), Decoding(max_new_tokens=most))
    session.see(path)
    return session, length


def test_a_conversation_that_the_model_has_no_room_for_is_refused(loaded, clip, seen):
    session, length = roomy(loaded, clip, room=0)
    before = session.dialogue
    with pytest.raises(
        TooLong, match=f"takes {length} tokens, and the model has room for {length}, .*/clear"
    ):
        session.ask(QUESTION)
    assert session.dialogue == before and seen == [], "nothing is encoded that cannot be asked about"


@pytest.mark.parametrize("room", [1, 5])
def test_an_answer_is_as_long_as_fits(loaded, clip, room, monkeypatch):
    session, length = roomy(loaded, clip, room)
    out_of_words = [loaded.model.get_output_embeddings().out_features]
    monkeypatch.setattr(type(loaded.processor), "stop_ids", property(lambda self: out_of_words))
    answer = session.ask(QUESTION)
    assert (session.times.prompt_tokens, session.times.new_tokens) == (length, room)
    whole, _ = roomy(loaded, clip, room=100)
    assert whole.ask(QUESTION).startswith(answer) and whole.times.new_tokens == 12


# --- images and videos in one chat ---


def test_neither_an_image_nor_a_video_is_dropped(tiny, clip, picture):
    """E9: the published chat takes media of one kind, and without a word leaves out the others."""
    loaded = chatty(fresh(tiny))
    video, image = loaded.processor.load_video(clip), loaded.processor.load_image(picture)
    both = by_hand(loaded, [f"<image>\n<video>\n{QUESTION}"], [image, video])
    assert session_with(loaded, picture, clip).ask(QUESTION) == both
    alone = {session_with(loaded, path).ask(QUESTION) for path in (picture, clip)}
    assert both not in alone and len(alone) == 2


# --- what goes wrong leaves no trace ---


def fail_once(monkeypatch, model, on: int) -> None:
    """The tower runs out of memory at its n-th call from now on, and at no other."""
    calls, encode = [], model.encode_media

    def failing(media, *more):
        calls.append(media)
        if len(calls) == on:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(media, *more)

    monkeypatch.setattr(model, "encode_media", failing, raising=False)


@pytest.mark.parametrize("place", [0, 1])
def test_a_medium_that_cannot_be_encoded_is_taken_back(loaded, tiny, clip, picture, monkeypatch, place):
    paths = [clip, picture]
    session = session_with(loaded, *paths)
    with monkeypatch.context() as patch:
        fail_once(patch, loaded.model, on=place + 1)
        with pytest.raises(RuntimeError, match=f"{paths[place]} could not be encoded .*out of memory"):
            session.ask(QUESTION)
        (left,) = set(paths) - {paths[place]}
        assert [path for _, path in session.dialogue.waiting] == [left] and len(session.media) == 1
        assert session.ask(QUESTION) == session_with(loaded, left).ask(QUESTION)
    session.see(paths[place])
    other = session_with(loaded, left)
    other.ask(QUESTION)
    other.see(paths[place])
    assert session.ask("And here?") == other.ask("And here?")


def test_media_that_wait_can_be_taken_back(loaded, clip, picture):
    session = session_with(loaded, clip)
    first = session.ask(QUESTION)
    for path in (picture, clip):
        session.see(path)
    session.encode()
    session.take_back(0)
    assert session.dialogue.waiting == () and len(session.media) == 1, "what was asked about stays"
    other = session_with(loaded, clip)
    assert (first, session.ask("And then?")) == (other.ask(QUESTION), other.ask("And then?"))


@pytest.mark.parametrize("path", ["nowhere.mp4", "nowhere.png", "notes.txt"])
def test_a_medium_that_cannot_be_used_changes_nothing(loaded, clip, path):
    session = session_with(loaded, clip)
    before = session.dialogue
    with pytest.raises((MediaError, ValueError), match=path):
        session.see(path)
    assert session.dialogue == before and len(session.media) == 1
    assert session.ask(QUESTION) == session_with(loaded, clip).ask(QUESTION)


@pytest.mark.parametrize("question", ["", "  ", "Is <visual> one?", "What is in <video>?"])
def test_a_question_that_cannot_be_asked_changes_nothing(loaded, clip, question):
    session = session_with(loaded, clip)
    before = session.dialogue
    with pytest.raises(ValueError, match="empty|<visual>|<video>"):
        session.ask(question)
    assert session.dialogue == before
    assert session.ask(QUESTION) == session_with(loaded, clip).ask(QUESTION)
