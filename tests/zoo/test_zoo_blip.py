"""BLIP: padded labels, batches equal to single items, answers that start as taught, a loss for retrieval."""

import pytest
import torch
import transformers

from quicksviewer.zoo import generate_answer_blip, generate_caption_blip, prepare_inputs_for_blip
from quicksviewer.zoo.blip_writing import decoder_batch

QUESTIONS = ["what color is it?", "is there a circle in the picture?", "red?"]
ANSWERS = ["red", "a blue square", "yes"]
START, PAD, CLS, SEP = 78, 0, 2, 3


def batch_of(result, pictures):
    """The seed's four keys, labels padded with -100."""
    batch = prepare_inputs_for_blip(result["processor"], pictures, QUESTIONS)
    answers = result["tokenizer"](ANSWERS, padding=True, return_tensors="pt")
    batch["labels"] = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
    return batch


# --- labels


def test_the_decoder_reads_its_start_and_learns_what_is_no_padding():
    labels = torch.tensor([[CLS, 9, SEP, -100], [CLS, 8, 7, SEP], [CLS, 6, SEP, PAD]])
    inputs, is_read, targets = decoder_batch(labels, START, PAD)
    assert inputs.tolist() == [[START, 9, SEP, PAD], [START, 8, 7, SEP], [START, 6, SEP, PAD]]
    assert is_read.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert targets.tolist() == [[CLS, 9, SEP, -100], [CLS, 8, 7, SEP], [CLS, 6, SEP, -100]]
    assert labels[0, 3] == -100, "the caller's labels stay as they are"


@pytest.mark.parametrize("task", ["vqa", "conditional_generation"])
def test_the_loss_of_a_padded_batch_is_that_of_its_words(task, loaded, pictures):
    result = loaded("blip", task)
    model, batch = result["model"], batch_of(result, pictures)
    if task == "conditional_generation":
        batch.pop("input_ids"), batch.pop("attention_mask")
    loss = model(**batch).loss
    as_pads = batch["labels"].masked_fill(batch["labels"] == -100, PAD)
    assert torch.equal(loss, model(**{**batch, "labels": as_pads}).loss)
    words, total = 0, 0.0
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        one["labels"] = one["labels"][:, : int((one["labels"] != -100).sum())]
        if "input_ids" in one:
            length = int(one["attention_mask"].sum())
            one |= {key: one[key][:, :length] for key in ("input_ids", "attention_mask")}
        count = one["labels"].shape[1] - 1  # the first is the start
        words, total = words + count, total + model(**one).loss.item() * count
    assert loss.item() == pytest.approx(total / words, rel=1e-5)


def test_without_padding_and_with_the_decoders_own_start_it_is_the_loss_of_transformers(
    checkpoint, loaded, pictures
):
    result = loaded("blip", "vqa")
    plain = transformers.BlipForQuestionAnswering.from_pretrained(checkpoint("blip", "vqa")).eval()
    batch = prepare_inputs_for_blip(result["processor"], pictures[0], QUESTIONS[0])
    labels = result["tokenizer"]("red", return_tensors="pt")["input_ids"]
    ours = result["model"](**batch, labels=labels).loss
    labels[:, 0] = plain.decoder_start_token_id
    assert torch.equal(ours, plain(**batch, labels=labels).loss)
    with pytest.raises((IndexError, RuntimeError)):  # the fault that the class here takes away
        plain(**batch, labels=torch.tensor([[CLS, 9, SEP, -100]]))


def test_labels_without_their_start_are_refused(loaded, pictures):
    result = loaded("blip", "vqa")
    batch = prepare_inputs_for_blip(result["processor"], pictures[0], QUESTIONS[0])
    ids = result["tokenizer"]("red", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with pytest.raises(
        ValueError, match=r"expected \[CLS\] \(2\): tokenise answers with their special tokens"
    ):
        result["model"](**batch, labels=ids)


@pytest.mark.parametrize("task", ["vqa", "conditional_generation"])
def test_a_few_steps_teach_the_answers_that_are_then_given(task, loaded, pictures):
    result = loaded("blip", task)
    model, batch = result["model"].train(), batch_of(result, pictures)
    if task == "conditional_generation":
        batch.pop("input_ids"), batch.pop("attention_mask")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        losses.append(model(**batch).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 10
    if task == "vqa":
        assert generate_answer_blip(model, result["processor"], pictures, QUESTIONS) == ANSWERS
    else:
        assert generate_caption_blip(model, result["processor"], pictures) == ANSWERS
    assert model.training, "asking does not end training"


# --- batches


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_batch_of_questions_equals_single_ones(num_beams, loaded, pictures):
    model, processor = (loaded("blip", "vqa")[key] for key in ("model", "processor"))
    together = generate_answer_blip(model, processor, pictures, QUESTIONS, num_beams=num_beams)
    single = [
        generate_answer_blip(model, processor, *pair, num_beams=num_beams)
        for pair in zip(pictures, QUESTIONS, strict=True)
    ]
    assert together == single and len(set(single)) > 1
    padded = processor(images=None, text=QUESTIONS, padding=True)["attention_mask"]
    assert any(0 in row for row in padded), "this must be a batch with padding"


def test_generate_of_the_class_hides_padding_too(loaded, pictures):
    result = loaded("blip", "vqa")
    batch = prepare_inputs_for_blip(result["processor"], pictures, QUESTIONS)
    wide = {key: torch.nn.functional.pad(batch[key], (0, 9)) for key in ("input_ids", "attention_mask")}
    model = result["model"]
    wide_ids = model.generate(pixel_values=batch["pixel_values"], **wide, max_length=8)
    assert torch.equal(model.generate(**batch, max_length=8), wide_ids)


def test_a_model_of_transformers_own_class_is_asked_one_by_one(checkpoint, loaded, pictures):
    result = loaded("blip", "vqa")
    plain = transformers.BlipForQuestionAnswering.from_pretrained(checkpoint("blip", "vqa"))
    ours, theirs = (
        generate_answer_blip(model, result["processor"], pictures, QUESTIONS)
        for model in (result["model"], plain.train())
    )
    assert ours == theirs and plain.training


@pytest.mark.parametrize("beginnings", [None, "a picture of", ["a", "a picture of", "a red circle"]])
def test_captions_of_several_pictures_equal_single_ones(beginnings, loaded, pictures):
    model, processor = (loaded("blip", "conditional_generation")[key] for key in ("model", "processor"))
    together = generate_caption_blip(model, processor, pictures, beginnings, max_length=12)
    each = beginnings if isinstance(beginnings, list) else [beginnings] * 3
    single = [
        generate_caption_blip(model, processor, *pair, max_length=12)
        for pair in zip(pictures, each, strict=True)
    ]
    assert together == single
    assert all(caption.startswith(text or "") for caption, text in zip(together, each, strict=True))


# --- inputs


def test_inputs_of_one_and_of_many(loaded, pictures):
    processor = loaded("blip", "vqa")["processor"]
    one = prepare_inputs_for_blip(processor, pictures[0], QUESTIONS[1], device="cpu")
    many = prepare_inputs_for_blip(processor, pictures, QUESTIONS)
    assert one["pixel_values"].shape == (1, 3, 32, 32) and many["pixel_values"].shape == (3, 3, 32, 32)
    assert torch.equal(
        one["pixel_values"][0], prepare_inputs_for_blip(processor, pictures)["pixel_values"][0]
    )
    assert torch.equal(one["input_ids"][0], many["input_ids"][1])
    assert "input_ids" not in prepare_inputs_for_blip(processor, pictures)


def test_any_kind_of_picture_becomes_rgb(loaded, pictures):
    from PIL import Image

    processor = loaded("blip", "vqa")["processor"]
    with Image.open(pictures[0]) as image:
        image.load()
    kinds = [str(pictures[0]), pictures[0].read_bytes(), image, image.convert("RGBA")]
    pixels = [prepare_inputs_for_blip(processor, kind)["pixel_values"] for kind in kinds]
    assert all(torch.equal(pixels[0], other) for other in pixels)
    grey = prepare_inputs_for_blip(processor, image.convert("L"))["pixel_values"]
    assert grey.shape == (1, 3, 32, 32)


def test_what_does_not_fit_is_refused(loaded, pictures):
    model, processor = (loaded("blip", "vqa")[key] for key in ("model", "processor"))
    with pytest.raises(ValueError, match="3 pictures and 2 texts"):
        prepare_inputs_for_blip(processor, pictures, QUESTIONS[:2])
    with pytest.raises(ValueError, match="the model reads 64: 'red red"):
        generate_answer_blip(model, processor, pictures[0], "red " * 80)
    with pytest.raises(Exception, match="nowhere.png"):
        generate_answer_blip(model, processor, "nowhere.png", "red?")


# --- retrieval


def test_scores_are_those_of_transformers_and_labels_give_the_loss_of_the_head(checkpoint, loaded, pictures):
    result = loaded("blip", "image_text_retrieval")
    plain = transformers.BlipForImageTextRetrieval.from_pretrained(checkpoint("blip", "image_text_retrieval"))
    batch = prepare_inputs_for_blip(result["processor"], pictures, ANSWERS)
    labels = torch.tensor([1, 0, 1])
    for use_itm_head in (True, False):
        scores = result["model"](**batch, use_itm_head=use_itm_head)
        assert scores.loss is None
        assert torch.equal(scores.itm_score, plain.eval()(**batch, use_itm_head=use_itm_head).itm_score)
    output = result["model"](**batch, labels=labels)
    assert torch.equal(output.loss, torch.nn.functional.cross_entropy(output.itm_score, labels))
    for wrong in ({"use_itm_head": False, "labels": labels}, {"labels": labels[None]}):
        with pytest.raises(ValueError, match="labels are 0 or 1 for each of 3 pairs"):
            result["model"](**batch, **wrong)


def test_the_loss_of_pairs_learns_which_belong_together(loaded, pictures):
    result = loaded("blip", "image_text_retrieval")
    model, batch = result["model"].train(), prepare_inputs_for_blip(result["processor"], pictures, ANSWERS)
    with pytest.raises(ValueError, match="a batch needs at least 2"):
        model(**{key: value[:1] for key, value in batch.items()}, return_loss=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        losses.append(model(**batch, return_loss=True).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] / 4
    model.eval()
    similarity = model(**batch, use_itm_head=False).itm_score
    assert similarity.argmax(1).tolist() == similarity.argmax(0).tolist() == [0, 1, 2]
    turned = {**batch, "pixel_values": batch["pixel_values"].roll(1, 0)}
    yes = model(**batch).itm_score.softmax(-1)[:, 1]
    assert yes.min() > model(**turned).itm_score.softmax(-1)[:, 1].max()


def test_the_loss_of_pairs_is_contrastive_plus_matching(loaded, pictures):
    """Written out pair by pair."""
    result = loaded("blip", "image_text_retrieval")
    model, batch = result["model"], prepare_inputs_for_blip(result["processor"], pictures, ANSWERS)
    with torch.no_grad():
        similarity = model(**batch, use_itm_head=False).itm_score
        answers = []
        wrong = similarity.masked_fill(torch.eye(3).bool(), -9.0)
        pairs = [(i, i) for i in range(3)] + [(i, int(wrong[i].argmax())) for i in range(3)]
        pairs += [(int(wrong[:, j].argmax()), j) for j in range(3)]
        for i, j in pairs:
            one = {key: batch[key][j : j + 1] for key in ("input_ids", "attention_mask")}
            answers.append(model(pixel_values=batch["pixel_values"][i : i + 1], **one).itm_score[0])
        entropy = torch.nn.functional.cross_entropy
        target = torch.arange(3)
        contrastive = (entropy(similarity / 0.07, target) + entropy(similarity.t() / 0.07, target)) / 2
        matching = entropy(torch.stack(answers), torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0]))
        torch.testing.assert_close(model(**batch, return_loss=True).loss, contrastive + matching)
