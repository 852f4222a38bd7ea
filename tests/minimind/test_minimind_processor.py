"""Rows and questions become what MiniMindVLM reads: marks become runs, labels cover what is answered."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from quicksviewer.constants import IGNORE_INDEX, IMAGE_MARK, VIDEO_MARK
from quicksviewer.conversation import Turn, encode, render
from quicksviewer.minimind import MiniMindVLM, VLLMconfig
from quicksviewer.minimind.processor import MiniMindProcessor, add_image_mark
from quicksviewer.utils.media import MediaError

PATCHES = 36
ASKED = [Turn("user", f"{IMAGE_MARK}\nWhat is seen?"), Turn("assistant", "red circle")]


@pytest.fixture(scope="module")
def model(tiny):
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=700)
    return MiniMindVLM(VLLMconfig(**shape), str(tiny / "siglip")).eval()


@pytest.fixture(scope="module")
def processor(model, tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "minimind")
    add_image_mark(model, tokenizer)
    return MiniMindProcessor.of(model, tokenizer, "plain")


def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_the_mark_is_one_token_of_tokenizer_and_model(model, processor):
    assert model.params.image_ids == [processor.image_id] * PATCHES
    assert model.params.image_special_token == IMAGE_MARK * PATCHES
    assert processor.tokenizer.tokenize(f"a{IMAGE_MARK}b").count(IMAGE_MARK) == 1
    before = len(processor.tokenizer)
    add_image_mark(model, processor.tokenizer)
    assert len(processor.tokenizer) == before <= model.get_input_embeddings().num_embeddings


def test_an_embedding_without_room_grows(processor, tiny):
    shape = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    small = MiniMindVLM(VLLMconfig(**shape, vocab_size=processor.image_id), str(tiny / "siglip"))
    add_image_mark(small, processor.tokenizer)
    assert small.get_input_embeddings().num_embeddings == small.params.vocab_size == len(processor.tokenizer)


def test_a_mark_becomes_a_run_that_nobody_learns(processor):
    row = processor.encode_turns(ASKED, [processor.load(IMAGE_MARK, picture())])
    ids, learn = encode(processor.tokenizer, render(processor.conversation, ASKED))
    place = ids.index(processor.image_id)
    assert row["input_ids"] == [*ids[:place], *[processor.image_id] * PATCHES, *ids[place + 1 :]]
    learned = [label for label in row["labels"] if label != IGNORE_INDEX]
    assert learned == [token for token, told in zip(ids, learn, strict=True) if told]
    assert processor.tokenizer.decode(learned).strip().startswith("red circle")
    assert row["pixel_values"].shape == (1, 3, 48, 48) and row["medium_is_video"] == [False]


def test_text_alone_has_no_pictures(processor):
    row = processor.encode_turns([Turn("user", "Hello"), Turn("assistant", "red")])
    assert set(row) == {"input_ids", "labels"}


@pytest.mark.parametrize("given", [0, 2])
def test_pictures_that_do_not_match_their_marks_are_refused(processor, given):
    with pytest.raises(ValueError, match=f"1 marks {IMAGE_MARK}, but there are {given} pictures"):
        processor.encode_turns(ASKED, [processor.load(IMAGE_MARK, picture())] * given)


def test_only_pictures_are_read(processor, tmp_path):
    with pytest.raises(ValueError, match="no videos"):
        processor.load(VIDEO_MARK, tmp_path / "a.mp4")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(MediaError, match="a.png"):
        processor.load(IMAGE_MARK, tmp_path / "a.png")
    picture().save(tmp_path / "b.png")
    loaded = processor.load(IMAGE_MARK, tmp_path / "b.png")
    assert torch.equal(loaded.pixels, processor.load(IMAGE_MARK, picture()).pixels)


def test_questions_of_different_length_are_answered_as_alone(model, processor):
    questions = ("What is seen?", "And what else is to be seen here?")
    rows = [
        processor.encode_turns(
            [Turn("user", f"{IMAGE_MARK}\n{question}")], [processor.load(IMAGE_MARK, picture(i))], True
        )
        for i, question in enumerate(questions)
    ]
    ask = dict(
        max_new_tokens=6, do_sample=False, pad_token_id=processor.pad_id, eos_token_id=processor.stop_ids
    )

    def answers(some):
        batch = processor.batch(some)
        return processor.decode(model.generate(**batch, **ask)[:, batch["input_ids"].shape[1] :])

    assert answers(rows) == answers(rows[:1]) + answers(rows[1:])


def test_an_answer_ends_at_the_first_end(processor):
    ids = processor.tokenizer("red circle", add_special_tokens=False)["input_ids"]
    rest = processor.tokenizer(" and more", add_special_tokens=False)["input_ids"]
    assert processor.decode(torch.tensor([[*ids, processor.stop_ids[0], *rest]])) == ["red circle"]


def test_a_saved_processor_makes_the_same_rows(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = MiniMindProcessor.from_pretrained(tmp_path)
    rows = [p.encode_turns(ASKED, [p.load(IMAGE_MARK, picture())]) for p in (processor, again)]
    assert rows[0]["input_ids"] == rows[1]["input_ids"] and rows[0]["labels"] == rows[1]["labels"]
    assert torch.equal(rows[0]["pixel_values"], rows[1]["pixel_values"])
    assert again.to_dict() == processor.to_dict()
    (tmp_path / "minimind_processor.json").unlink()
    with pytest.raises(ValueError, match="no minimind_processor.json"):
        MiniMindProcessor.from_pretrained(tmp_path)
