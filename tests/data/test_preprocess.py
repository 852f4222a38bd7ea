"""A row is read whole or refused with its place; marks and media agree to the last one."""

import pickle

import pytest

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.conversation import TEMPLATES, Turn, render
from quicksviewer.data.instructions import INSTRUCTIONS, pick_instruction
from quicksviewer.data.preprocess import (
    MediumRef,
    Sample,
    SampleError,
    make_labels,
    modality,
    parse_sample,
    preprocess_multimodal_image,
    preprocess_multimodal_video,
)


def talk(*texts: str, system: str | None = None) -> list[dict]:
    said = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return [{"from": "system", "value": system}, *said] if system is not None else said


def row(*texts: str, **more) -> dict:
    return {
        "uid": "a_1",
        "data_type": "conversations",
        "conversations": talk(*texts or ("What?", "A cat.")),
    } | more


def parse(record) -> Sample:
    return parse_sample(record, "rows.jsonl:7")


def texts_of(sample: Sample) -> list[str]:
    return [turn.text for turn in sample.turns]


def paths_of(sample: Sample) -> list[str]:
    return [medium.path for medium in sample.media]


def test_a_conversation_with_a_marked_image():
    sample = parse(row("<image>\nWhat?", "A cat.", image="a.jpg", source="made"))
    turns = (Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat."))
    assert sample == Sample("a_1", turns, (MediumRef("image", "a.jpg"),), "conversations", "made")
    assert modality(sample) == "image"


def test_text_alone_has_no_media_and_no_dummy():
    sample = parse(row("  Hello \n", "\nHi."))
    assert (texts_of(sample), sample.media, modality(sample)) == (["Hello", "Hi."], (), "text")


def test_a_system_turn_may_come_first():
    sample = parse(row(conversations=talk("What?", "A cat.", system="Be brief."), image="a.jpg"))
    assert texts_of(sample) == ["Be brief.", "<image>\nWhat?", "A cat."]
    assert sample.turns[0].role == "system"


def test_media_without_marks_come_first_images_before_videos():
    sample = parse(row(image=["a.jpg", "b.jpg"], video="c.mp4"))
    assert texts_of(sample) == ["<image>\n<image>\n<video>\nWhat?", "A cat."]
    assert paths_of(sample) == ["a.jpg", "b.jpg", "c.mp4"] and modality(sample) == "video"


def test_media_stand_in_the_order_of_their_marks_in_any_turn():
    sample = parse(
        row(
            "Look: <video>",
            "Yes.",
            "And <image> or <image><video>?",
            "No.",
            image=["a", "b"],
            video=["v", "w"],
        )
    )
    assert paths_of(sample) == ["v", "a", "b", "w"]
    assert texts_of(sample)[0] == "Look: <video>"


def test_a_clip_of_a_video_by_either_name():
    more = {"start_sec": 1, "end_sec": 2.5, "timestamps": [0, 0.5, 0.5], "video_len": 9, "metadata": {"x": 1}}
    for key in ("video", "video_id"):
        sample = parse(row("<video> What?", "A cat.", **{key: "v.mp4"}, **more))
        assert sample.media == (MediumRef("video", "v.mp4", 1.0, 2.5, (0.0, 0.5, 0.5)),)


def test_null_is_as_good_as_absent():
    assert parse(row(image=None, video=None, start_sec=None)) == parse(row())


def test_every_row_can_be_rendered():
    sample = parse(row(image=["a"], video=["v"]))
    for template in TEMPLATES.values():
        assert "<image>\n<video>\nWhat?" in "".join(span.text for span in render(template, sample.turns))


# Captions


def caption(**more) -> dict:
    return {"uid": "c_1", "data_type": "caption", "caption": " A cat sits. "} | more


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_caption_answers_an_instruction_that_depends_on_the_uid_alone(kind):
    drawn = set()
    for number in range(200):
        record = caption(uid=f"c_{number}", **{kind: "file"})
        sample = parse(record)
        question, answer = texts_of(sample)
        assert sample == parse(record) and answer == "A cat sits."
        assert question == f"<{kind}>\n{pick_instruction(kind, sample.uid)}"
        drawn.add(question.split("\n")[1])
    assert drawn == set(INSTRUCTIONS[kind])


def test_instructions_are_a_dozen_each_and_all_different():
    for lines in INSTRUCTIONS.values():
        assert len(lines) == len(set(lines)) == 12
    assert not set(INSTRUCTIONS["image"]) & set(INSTRUCTIONS["video"])


# Interleaved documents


def document(image: list, caption: list, **more) -> dict:
    return {"uid": "d_1", "data_type": "interleave", "image": image, "caption": caption} | more


def test_a_document_becomes_turns():
    sample = parse(document(["a", "b", None, None, "c", None], [None, None, " One.", "Two.", None, "Three."]))
    assert texts_of(sample) == ["<image>\n<image>", "One.\nTwo.", "<image>", "Three."]
    assert paths_of(sample) == ["a", "b", "c"]
    assert [turn.role for turn in sample.turns] == ["user", "assistant"] * 2


# Refusals

REFUSED = {
    "not an object": ([1], "must be an object"),
    "a typo in a key": (row(conversatoins=[]), "unknown key 'conversatoins'. Did you mean 'conversations'?"),
    "a typo in the type": (
        row(data_type="captions"),
        "unknown data_type 'captions'. Did you mean 'caption'?",
    ),
    "no uid": ({key: value for key, value in row().items() if key != "uid"}, "uid missing"),
    "neither": ({"caption": "x"}, "uid and data_type missing"),
    "an empty uid": (row(uid=" "), "uid: must be a text"),
    "a number as uid": (row(uid=7), "uid: must be a text"),
    "no conversation": ({"uid": "a", "data_type": "conversations"}, "needs conversations"),
    "an empty conversation": (row(conversations=[]), "conversations: must be a list that is not empty"),
    "a text as conversation": (row(conversations="Hi"), "conversations: must be a list"),
    "a third key in a turn": (
        row(conversations=[{"from": "human", "value": "x", "id": 1}]),
        "'from' and 'value'",
    ),
    "a strange speaker": (row(conversations=[{"from": "humn", "value": "x"}]), "Did you mean 'human'?"),
    "a turn without text": (
        row(conversations=[{"from": "human", "value": None}]),
        "must be a text, got None",
    ),
    "an empty question": (row(" ", "x"), "a turn of the conversation is empty"),
    "an empty answer": (row("x", "\n"), "a turn of the conversation is empty"),
    "two questions": (
        row(conversations=talk("a", "b") + talk("c", "d")[:1] * 2),
        "turn 3 must be of the assistant",
    ),
    "a gpt turn first": (row(conversations=talk("a", "b")[1:]), "turn 0 must be of the user"),
    "a late system turn": (row(conversations=talk("a", "b") + talk(system="s")), "must be of the user"),
    "no last answer": (row("a", "b", "c"), "must end with a gpt turn"),
    "two marks for one video": (
        row("<video><video> What?", "x", video="v"),
        "2 <video> in the conversation, but 1",
    ),
    "one mark for two images": (
        row("<image> What?", "x", image=["a", "b"]),
        "1 <image> in the conversation, but 2",
    ),
    "a mark without a medium": (row("<image> What?", "x"), "1 <image> in the conversation, but 0"),
    "a mark of the wrong kind": (
        row("<image> What?", "x", video="v"),
        "1 <image> in the conversation, but 0",
    ),
    "one kind unmarked": (
        row("<image> What?", "x", image="a", video="v"),
        "0 <video> in the conversation, but 1",
    ),
    "a mark in an answer": (row("What?", "See <image>", image="a"), "<image> in what the assistant says"),
    "a mark in the system turn": (
        row(conversations=talk("a", "b", system="<video>"), video="v"),
        "the system says",
    ),
    "an image that is a number": (row(image=3), "image: must be a list"),
    "an image list with a number": (row(image=["a", 3]), "image: must be a text"),
    "an empty image list": (row(image=[]), "image: must be a list that is not empty"),
    "an empty video list": (row(video=[]), "video: must be a list that is not empty"),
    "a null image": (row(image=["a", None]), "null in image"),
    "a null video": (row(video=["a", None]), "video: must be a text"),
    "both names of the video": (row(video="v", video_id="v"), "two names for one thing"),
    "a clip without a video": (row(image="a", start_sec=1), "a row of one video, this one has 0"),
    "a clip of two videos": (row(video=["v", "w"], end_sec=1), "a row of one video, this one has 2"),
    "a clip that ends before it starts": (
        row(video="v", start_sec=2, end_sec=2),
        "end_sec=2.0 must lie after",
    ),
    "a clip of no length": (row(video="v", end_sec=0), "end_sec=0.0 must lie after"),
    "a negative second": (row(video="v", start_sec=-1), "start_sec: must be a number of seconds"),
    "an infinite second": (row(video="v", end_sec=float("inf")), "end_sec: must be a number of seconds"),
    "a second that is no number": (
        row(video="v", end_sec=float("nan")),
        "end_sec: must be a number of seconds",
    ),
    "a second in words": (row(video="v", start_sec="1"), "start_sec: must be a number of seconds"),
    "true as a second": (row(video="v", start_sec=True), "start_sec: must be a number of seconds"),
    "timestamps that go back": (row(video="v", timestamps=[1, 0.5]), "timestamps: must not go back"),
    "no timestamps": (row(video="v", timestamps=[]), "timestamps: must be a list"),
    "metadata as text": (row(metadata="x"), "metadata: must be an object"),
    "a caption in a conversation": (row(caption="x"), "'conversations' has no caption"),
    "a caption of nothing": (caption(), "a caption needs an image or a video"),
    "no caption": ({"uid": "c", "data_type": "caption", "image": "a"}, "'caption' needs caption"),
    "a list of captions": (caption(caption=["x"], image="a"), "a list of captions"),
    "a mark in a caption": (caption(caption="<image>", image="a"), "<image> in what the assistant says"),
    "a conversation in a caption": (caption(image="a", conversations=talk("a", "b")), "has no conversations"),
    "a document with a video": (document(["a", None], [None, "x"], video="v"), "'interleave' has no video"),
    "a document of one image": (document("a", [None, "x"]), "lists of one length"),
    "a document of two lengths": (document(["a"], [None, "x"]), "lists of one length"),
    "a place with both": (
        document(["a", "b"], [None, "x"]),
        "place 1 must have an image or a caption, and not both",
    ),
    "a place with none": (document(["a", None, None], [None, None, "x"]), "place 1 must have"),
    "text first": (document([None, "a", None], ["x", None, "y"]), "must start with an image"),
    "an image last": (document(["a", None, "b"], [None, "x", None]), "end with a caption"),
    "a mark in a document": (document(["a", None], [None, "<image>"]), "<image> in what the assistant says"),
}


@pytest.mark.parametrize(("record", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_row_that_is_not_in_order_is_refused_with_its_place(record, reason):
    with pytest.raises(SampleError) as caught:
        parse(record)
    assert str(caught.value).startswith("rows.jsonl:7: ") and caught.value.where == "rows.jsonl:7"
    assert reason in caught.value.reason


def test_the_error_crosses_processes():
    error = pickle.loads(pickle.dumps(SampleError("a:1", "bad")))
    assert (error.where, error.reason, str(error)) == ("a:1", "bad", "a:1: bad")


# The functions by themselves


def test_marks_are_checked_and_placed():
    turns = [Turn("user", "What?"), Turn("assistant", "x")]
    assert preprocess_multimodal_image(turns, 0) == tuple(turns)
    assert preprocess_multimodal_image(turns, 2)[0].text == "<image>\n<image>\nWhat?"
    marked = preprocess_multimodal_video(turns, 1)
    assert marked[0].text == "<video>\nWhat?" and preprocess_multimodal_video(marked, 1) == marked
    with pytest.raises(ValueError, match="1 <video>"):
        preprocess_multimodal_video(marked, 2)


def test_labels_are_the_learned_ids():
    assert make_labels([5, 6, 7], [False, True, True]) == [IGNORE_INDEX, 6, 7]
    with pytest.raises(ValueError):
        make_labels([5, 6], [True])


def test_values_refuse_nonsense():
    for wrong in (
        lambda: MediumRef("audio", "a"),
        lambda: MediumRef("image", "a", start=1.0),
        lambda: MediumRef("video", "a", 2.0, 1.0),
        lambda: Sample("u", (Turn("user", "<image>"),), (), "conversations"),
    ):
        with pytest.raises(ValueError):
            wrong()
