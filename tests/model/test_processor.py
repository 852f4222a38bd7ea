"""The processor: three doors to one prompt, media and layout that agree, and everything saved."""

import io
from itertools import product

import pytest
import torch
from PIL import Image
from tiny_world import BACKBONES, fresh, videos, with_template
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from quicksviewer.constants import IMAGE_MARK, MARKS, MODEL_TOKENS, VIDEO_MARK
from quicksviewer.conversation import Turn
from quicksviewer.model.config import TIME_CHARACTERS
from quicksviewer.model.processor import (
    MediaConfig,
    QuicksviewerProcessor,
    add_special_tokens,
    time_token_ids,
)
from quicksviewer.utils.data_util import read_video
from quicksviewer.utils.mm_utils import image_tiles, resize_frames, tile_grid

TEMPLATES = {"qwen2": ("qwen2", "smollm2", "plain"), "llama": ("llama_3", "plain"), "minimind": ("qwen2",)}
PAIRS = [(b, t) for b in BACKBONES for t in TEMPLATES[b]]
VIDEO, IMAGE = {"type": "video"}, {"type": "image"}
CONTENTS = {
    "text": [["Hello?"]],
    "video": [[VIDEO, "\nWhat?"]],
    "image and video": [[IMAGE, "\nand ", VIDEO, "\nWhat?"]],
    "several turns": [["Hello?"], ["red"], [VIDEO, IMAGE, "\nWhat?"], ["00 red"], [IMAGE, "\nAnd here?"]],
}


@pytest.fixture(scope="module")
def processors(tiny):
    by_backbone = {backbone: fresh(tiny, backbone) for backbone in BACKBONES}
    return {(b, t): with_template(by_backbone[b], t).processor for b, t in PAIRS}


@pytest.fixture(scope="module")
def processor(processors):
    return processors["qwen2", "plain"]


@pytest.fixture(scope="module")
def paths(tiny):
    return {VIDEO_MARK: str(videos(tiny)[0]), IMAGE_MARK: str(tiny / "data/images/00001_0.png")}


def asked(name: str, paths) -> tuple[list[dict], list[Turn], list[tuple[str, str]]]:
    """A conversation of CONTENTS as transformers' messages, as turns, and its media as (mark, path)."""
    messages, turns, sources = [], [], []
    for place, content in enumerate(CONTENTS[name]):
        role = ("user", "assistant")[place % 2]
        entries, text = [], ""
        for entry in content:
            mark = entry if isinstance(entry, str) else f"<{entry['type']}>"
            text += mark
            if isinstance(entry, str):
                entries.append({"type": "text", "text": entry})
            else:
                entries.append({**entry, "path": paths[mark]})
                sources.append((mark, paths[mark]))
        messages.append({"role": role, "content": entries})
        turns.append(Turn(role, text))
    return messages, turns, sources


def same(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(
        torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]
        for key, value in one.items()
    )


# --- three doors to one prompt ---


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_call_equals_the_chat_template_equals_the_turns(processors, paths, pair, name):
    processor = processors[pair]
    messages, turns, sources = asked(name, paths)
    media = [processor.load(mark, path) for mark, path in sources]
    expected = processor.batch([processor.encode_turns(turns, media, generation=True)])
    through_template = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    pools = {kind: [path for mark, path in sources if mark == kind] for kind in MARKS}
    called = processor(text=text, images=pools[IMAGE_MARK], videos=pools[VIDEO_MARK])
    assert same(through_template, expected) and same(called, expected)
    assert set(called) <= set(processor.model_input_names)


def test_plain_text_content_is_content_too(processor):
    words = [{"role": "user", "content": "Hello?"}]
    entries = [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]
    assert processor.apply_chat_template(words) == processor.apply_chat_template(entries)


def test_several_conversations_are_a_batch_of_each(processor, paths):
    names = ["text", "video", "image and video"]
    conversations = [asked(name, paths)[0] for name in names]
    told = processor.apply_chat_template(conversations, add_generation_prompt=True)
    assert told == [processor.apply_chat_template(c, add_generation_prompt=True) for c in conversations]
    rows = []
    for name in names:
        _, turns, sources = asked(name, paths)
        rows.append(processor.encode_turns(turns, [processor.load(*s) for s in sources], generation=True))
    batch = processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=True)
    assert same(batch, processor.batch(rows))
    image, video = paths[IMAGE_MARK], paths[VIDEO_MARK]
    assert same(processor(text=told, images=[image], videos=[video, video]), batch)


def test_one_medium_needs_no_list(processor, paths):
    text = processor.apply_chat_template(asked("video", paths)[0])
    path = paths[VIDEO_MARK]
    assert same(processor(text=text, videos=path), processor(text=[text], videos=[path]))


def test_a_batch_is_padded_on_the_left_and_has_no_labels(processor):
    rows = [
        processor.encode_turns([Turn("user", text)], generation=True) for text in ("Hello?", "a b c d e f")
    ]
    batch = processor.batch(rows)
    assert "labels" not in batch
    for line, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][line, -length:].tolist() == row["input_ids"]
        assert (
            batch["attention_mask"][line].tolist()
            == [0] * (len(batch["input_ids"][0]) - length) + [1] * length
        )


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_labels_are_what_the_assistant_says_and_its_end(processors, paths, pair):
    processor = processors[pair]
    _, turns, sources = asked("several turns", paths)
    row = processor.encode_turns(turns, [processor.load(*source) for source in sources])
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert [label for label in row["labels"] if label != -100] == learned
    end = processor.tokenizer.decode(processor.stop_ids[-1:])
    told = processor.tokenizer.decode(learned).split(processor.tokenizer.eos_token)
    assert [text.strip() for text in told] == ["red", "00 red", ""] and end


# --- what does not agree ---


@pytest.mark.parametrize(
    ("text", "images", "videos", "message"),
    [
        ("What?", 1, 0, "1 more media than <image> marks"),
        ("What?", 0, 2, "2 more media than <video> marks"),
        ("<image> What?", 0, 0, "more <image> marks in the text than media"),
        ("<video><video> What?", 0, 1, "more <video> marks in the text than media"),
        ("<video> What?", 1, 0, "more <video> marks"),
        ([], 0, 0, "at least one text"),
        (None, 1, 0, "at least one text"),
    ],
)
def test_too_many_and_too_few_media_are_told(processor, paths, text, images, videos, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text, images=[paths[IMAGE_MARK]] * images, videos=[paths[VIDEO_MARK]] * videos)


@pytest.mark.parametrize(
    ("text", "given"),
    [("What?", "v"), ("<video> What?", ""), ("<video> What?", "vv"), ("<image><video> What?", "vi")],
)
def test_turns_and_media_must_agree_also_in_order(processor, paths, text, given):
    media = [
        processor.load(mark, paths[mark]) for mark in ({"v": VIDEO_MARK, "i": IMAGE_MARK}[c] for c in given)
    ]
    with pytest.raises(ValueError, match="the text has the marks .* but the media are"):
        processor.encode_turns([Turn("user", text)], media)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "vidio", "path": "a"}], "Did you mean 'video'"),
        ([{"type": "video"}], "must give its file under 'path'"),
        ([{"text": "What?"}], "content type"),
        ("Is <visual> one?", "<visual>"),
    ],
)
def test_a_wrong_message_says_what_is_wrong(processor, content, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([{"role": "user", "content": content}])


@pytest.mark.parametrize("conversation", [[], [[]]])
def test_no_message_is_refused(processor, conversation):
    with pytest.raises(ValueError, match="needs a user turn|no conversation"):
        processor.apply_chat_template(conversation)


def test_an_answer_cannot_be_continued(processor):
    """transformers' pipelines ask for it when a conversation ends with an answer."""
    told = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "red"}]
    with pytest.raises(ValueError, match="cannot be continued"):
        processor.apply_chat_template(told, continue_final_message=True)


# --- media ---


def test_a_video_is_read_by_the_plan_of_the_checkpoint(processor, paths):
    path, size = paths[VIDEO_MARK], processor.size
    for changes, window in (({}, ()), ({"fps": 2.0}, ()), ({"max_frames": 2}, ()), ({}, (0.5, 2.0))):
        reader = processor.with_media(**changes)
        video = reader.load_video(path, *window)
        config = reader.media_config
        frames, plan = read_video(path, config.fps, config.max_frames, *(window or (None, None)))
        assert torch.equal(video.pixels, resize_frames(frames, size)) and video.is_video
        assert video.times.tolist() == pytest.approx(plan.times) and video.frames == [len(frames)]
    chosen = processor.load_video(path, times=[0.25, 1.25])
    assert chosen.times.tolist() == [0.25, 1.25] and len(chosen.pixels) == 2


def test_an_image_is_the_same_from_a_path_bytes_and_pil(processor, paths):
    path = paths[IMAGE_MARK]
    with open(path, "rb") as file:
        sources = [path, file.read(), Image.open(path)]
    pixels = [processor.load_image(source).pixels for source in sources]
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    assert not processor.load_image(path).is_video and processor.load_image(path).frames == [1]


@pytest.mark.parametrize(
    ("shape", "max_tiles"), product([(48, 48), (200, 60), (60, 200), (300, 300)], [0, 1, 4])
)
def test_tiles_are_as_many_as_the_layout_has_room_for(tiny, shape, max_tiles):
    loaded = fresh(tiny)
    processor = loaded.processor.with_media(max_tiles=max_tiles)
    picture = Image.effect_noise(shape, 80).convert("RGB")
    image = processor.load_image(picture)
    rows, columns = tile_grid(*shape, processor.size, max_tiles)
    assert len(image.pixels) == 1 + rows * columns == len(image_tiles(picture, processor.size, max_tiles))
    row = processor.encode_turns([Turn("user", "<image>\nWhat?")], [image], generation=True)
    ids = processor.layout.image_ids(len(image.pixels))
    start = row["input_ids"].index(ids[0])
    assert row["input_ids"][start : start + len(ids)] == ids and row["labels"].count(-100) == len(
        row["labels"]
    )
    assert row["medium_frames"] == [1] * len(image.pixels) and not any(row["medium_is_video"])
    with torch.no_grad():
        out = loaded.model.eval()(**processor.batch([row]))  # the model finds a token for every slot
    assert out.logits.shape[1] == len(row["input_ids"])


def test_tiles_of_a_file_are_those_of_the_picture(processor):
    picture = Image.effect_noise((120, 60), 80).convert("RGB")
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        tiled = processor.with_media(max_tiles=2)
        assert torch.equal(tiled.load_image(file.getvalue()).pixels, tiled.load_image(picture).pixels)


# --- what is saved ---


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_saved_equals_loaded(processors, paths, tmp_path, pair):
    processor = processors[pair].with_media(fps=2.0, max_frames=5, max_tiles=3)
    processor.save_pretrained(tmp_path)
    again = QuicksviewerProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict() and again.media_config == processor.media_config
    assert (again.mm_config, again.layout) == (processor.mm_config, processor.layout)
    assert (again.stop_ids, again.pad_id, again.size) == (
        processor.stop_ids,
        processor.pad_id,
        processor.size,
    )
    messages = asked("several turns", paths)[0]
    batches = [p.apply_chat_template(messages, tokenize=True) for p in (processor, again)]
    assert same(*batches)


def test_other_media_settings_leave_the_processor_as_it_was(processor):
    before = processor.to_dict()
    other = processor.with_media(fps=3.0)
    assert processor.to_dict() == before and other.media == {**processor.media, "fps": 3.0}
    assert other.tokenizer is processor.tokenizer and other.mm == processor.mm


@pytest.mark.parametrize(
    "changes", [{"fps": 0}, {"fps": -1.0}, {"max_frames": 0}, {"max_tiles": -1}], ids=lambda c: next(iter(c))
)
def test_impossible_media_settings_are_refused(processor, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        processor.with_media(**changes)
    with pytest.raises(ValueError):
        MediaConfig(**changes)


def test_an_unknown_template_is_answered_with_the_near_one(processor):
    with pytest.raises(ValueError, match="Did you mean 'qwen2'"):
        QuicksviewerProcessor(processor.tokenizer, processor.mm, "qwen")


# --- the tokenizer ---


@pytest.mark.parametrize("backbone", BACKBONES)
def test_special_tokens_are_added_once_and_in_one_run(tiny, backbone):
    tokenizer = AutoTokenizer.from_pretrained(tiny / backbone)
    known, controls = len(tokenizer), set(tokenizer.all_special_tokens)
    first = add_special_tokens(tokenizer)
    assert first == known and len(tokenizer) == known + len(MODEL_TOKENS) + len(MARKS)
    assert add_special_tokens(tokenizer) == first and len(tokenizer) == known + len(MODEL_TOKENS) + len(MARKS)
    for place, token in enumerate((*MODEL_TOKENS, *MARKS)):
        assert tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"].count(first + place) == 1
    assert controls <= set(tokenizer.all_special_tokens), "the tokenizer's own stay special"


def test_special_tokens_out_of_their_run_are_refused(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "qwen2")
    tokenizer.add_tokens([MODEL_TOKENS[3]])
    with pytest.raises(ValueError, match="not in one run"):
        add_special_tokens(tokenizer)


def test_a_tokenizer_without_digits_cannot_write_times(tiny):
    words = {"<unk>": 0, **{c: i for i, c in enumerate("0123456.", start=1)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    with pytest.raises(ValueError, match="'7', '8', '9'"):
        time_token_ids(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"))
    tokenizer = AutoTokenizer.from_pretrained(tiny / "llama")
    assert tokenizer.convert_ids_to_tokens(time_token_ids(tokenizer)) == list(TIME_CHARACTERS)
