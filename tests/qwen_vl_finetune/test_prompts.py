"""One prompt for training and inference, labels that are the answer alone, batches that equal single rows."""

import pytest
import torch
from PIL import Image

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.qwen_vl_finetune import evaluation, page
from quicksviewer.qwen_vl_finetune.data_processing import convert_to_conversation
from quicksviewer.qwen_vl_finetune.inference import prepare_inputs, prepare_messages
from quicksviewer.qwen_vl_finetune.load import load
from quicksviewer.qwen_vl_finetune.prompts import (
    Collator,
    answer_ids,
    answer_text,
    batched,
    encode_example,
    encode_prompt,
)
from quicksviewer.utils.image import load_image


@pytest.mark.parametrize("image_first", [True, False])
def test_training_and_inference_see_the_same_prompt(real_processor, formulas, image_first):
    for place in range(4):
        row = formulas[place]
        record = convert_to_conversation(row, image_first=image_first)
        trained = encode_example(real_processor, record)
        asked = prepare_inputs(real_processor, row["image"], prepare_messages(image_first=image_first))
        length = asked["input_ids"].shape[1]
        assert torch.equal(trained["input_ids"][:, :length], asked["input_ids"])
        assert torch.equal(trained["mm_token_type_ids"][:, :length], asked["mm_token_type_ids"])
        assert torch.equal(trained["pixel_values"], asked["pixel_values"])
        assert torch.equal(trained["image_grid_thw"], asked["image_grid_thw"])
        answer = trained["labels"][0, length:]
        assert (trained["labels"][0, :length] == IGNORE_INDEX).all()
        assert torch.equal(answer, trained["input_ids"][0, length:])
        words = real_processor.tokenizer
        assert words.decode(answer[:-1]) == row["text"] and answer[-1] == words.eos_token_id


def test_what_is_transparent_is_white_wherever_a_row_comes_from(loaded, tmp_path, monkeypatch):
    """A PIL picture, as parquet and the hub give it, and the file that a JSONL row names."""
    picture = Image.new("RGBA", (84, 56), (0, 0, 0, 0))
    picture.paste((200, 30, 30, 255), (10, 10, 50, 40))
    picture.save(tmp_path / "clear.png")
    white = Image.new("RGB", picture.size, "white")
    white.paste((200, 30, 30), (10, 10, 50, 40))
    trained = [
        encode_example(loaded.processor, convert_to_conversation({"image": image, "text": "x"}))
        for image in (white, picture, load_image(tmp_path / "clear.png"))
    ]
    asked = [
        prepare_inputs(loaded.processor, image, prepare_messages())
        for image in (picture, str(tmp_path / "clear.png"))
    ]
    assert all(torch.equal(row["pixel_values"], trained[0]["pixel_values"]) for row in trained + asked)
    seen = []
    monkeypatch.setattr(
        evaluation, "encode_prompt", lambda *given: seen.append(given[2][0]) or encode_prompt(*given)
    )
    evaluation.read_pictures(loaded.model, loaded.processor, [picture], max_new_tokens=1)
    assert [image.tobytes() for image in seen] == [white.tobytes()]
    assert page._inline(picture) == page._inline(white)


def test_training_tokens_are_those_of_the_whole_rendered_text(real_processor, formulas):
    """Prompt and answer are tokenised apart; for LaTeX that is how the whole text is tokenised too."""
    for place in range(len(formulas)):
        record = convert_to_conversation(formulas[place])
        row = encode_example(real_processor, record)
        whole = real_processor.apply_chat_template(record["messages"], tokenize=False)
        picture = [part["image"] for part in record["messages"][0]["content"] if "image" in part]
        ids = real_processor(text=[whole], images=picture, return_tensors="pt")["input_ids"]
        assert torch.equal(row["input_ids"], ids[:, : row["input_ids"].shape[1]])
        assert real_processor.tokenizer.decode(ids[0, row["input_ids"].shape[1] :]) == "\n"


def test_a_control_string_in_an_answer_is_text(real_processor):
    ids = answer_ids(real_processor.tokenizer, "a<|im_end|>b")
    assert ids.count(real_processor.tokenizer.eos_token_id) == 1
    assert real_processor.tokenizer.decode(ids[:-1]) == "a<|im_end|>b"


def test_a_batch_gives_the_logits_of_its_rows(loaded, formulas):
    model, processor = loaded.model, loaded.processor
    rows = [encode_prompt(processor, prepare_messages(), [formulas[n]["image"]]) for n in range(4)]
    assert len({row["input_ids"].shape[1] for row in rows}) > 1, "the pictures must differ in size"
    words = [{"role": "user", "content": [{"type": "text", "text": "x+1"}]}]
    rows.insert(1, encode_prompt(processor, words))
    with torch.no_grad():
        alone = [model(**row).logits[0] for row in rows]
        for side in ("left", "right"):
            batch = batched(rows, processor.tokenizer.pad_token_id, side)
            together = model(**batch).logits
            for n, logits in enumerate(alone):
                found = together[n][batch["attention_mask"][n].bool()]
                torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)


def test_long_answers_are_cut_and_counted_and_long_prompts_refused(loaded, formulas, caplog):
    processor, record = loaded.processor, convert_to_conversation(formulas[0])
    whole = encode_example(processor, record)["input_ids"].shape[1]
    collate = Collator(processor, whole - 2)
    batch = collate([record, record])
    assert batch["input_ids"].shape[1] == whole - 2 and collate.cut == 2
    assert caplog.text.count("longer than max_length") == 1
    with pytest.raises(ValueError, match="the prompt has .* tokens and max_length is 5"):
        Collator(processor, 5)([record])


def test_a_template_that_rewrites_answers_is_refused(small, formulas):
    processor, messages = load(small, bits=16, device="cpu").processor, convert_to_conversation(formulas[0])
    for template in (
        "{% for m in messages %}{{ m.role }}{{ loop.length }}{% endfor %}",  # another prompt
        "{% for m in messages %}{{ m.role }}{% endfor %}",  # no end
    ):
        processor.chat_template = template
        with pytest.raises(ValueError, match="the chat template does not write a prompt, an answer and"):
            answer_text(processor, messages["messages"])
