"""Tiny checkpoints look and work like downloaded ones: tokenizers, room in the embedding, reloading."""

import json

import pytest
import torch
from tiny_world import BACKBONES, CORPUS, SHAPE, TOWERS, WORLD, shape_of
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from quicksviewer.conversation import TEMPLATES, Turn, encode, render, stop_ids, with_end_of_text
from quicksviewer.model.config import TIME_CHARACTERS
from quicksviewer.synthetic import smollm2
from quicksviewer.synthetic.corpus import corpus_text
from quicksviewer.synthetic.tiny import (
    CHATML_SPECIALS,
    LANGUAGE_MODELS,
    LLAMA3_SPECIALS,
    LM_SHAPE,
    VOCABULARY,
    make_language_model,
    make_tower,
)
from quicksviewer.utils.registry import load_target

EVERY = pytest.mark.parametrize("family", BACKBONES)
OWN_TEMPLATES = {
    "qwen2": ("qwen2", "smollm2", "plain"),
    "llama": ("llama_3", "plain"),
    "minimind": ("qwen2",),
}
SPECIALS = {"qwen2": CHATML_SPECIALS, "llama": LLAMA3_SPECIALS, "minimind": CHATML_SPECIALS}


@pytest.fixture(scope="module")
def tokenizers(tiny):
    return {family: AutoTokenizer.from_pretrained(tiny / family) for family in BACKBONES}


def all_texts(root) -> set[str]:
    """Everything that a row of the corpus says, and worlds that no tokenizer has learned from."""
    texts = set(corpus_text(WORLD, CORPUS, count=90))
    for path in (root / "data").glob("*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            texts |= {turn["value"] for turn in row.get("conversations", [])}
            texts |= {row[key] for key in ("question", "answer") if key in row}
            texts |= {text for text in (*row.get("answers", ()), *row.get("caption", ())) if text}
    return texts


# --- tokenizers ---


@EVERY
def test_a_tokenizer_gives_back_every_text_of_the_corpus(tiny, tokenizers, family):
    texts = all_texts(tiny)
    assert len(texts) > 200
    for text in texts:
        ids = tokenizers[family](text, add_special_tokens=False)["input_ids"]
        assert tokenizers[family].decode(ids) == text and tokenizers[family].unk_token_id not in ids


@EVERY
@pytest.mark.parametrize("text", ["", "a  b", "a\n\nb ", "Größe 東京 ☂", "tab\there"])
def test_it_gives_back_other_texts_too(tokenizers, family, text):
    """But for a blank at the very start, which tokenizers of the LLaMA family take for their own."""
    ids = tokenizers[family](text, add_special_tokens=False)["input_ids"]
    assert tokenizers[family].decode(ids) == text


@EVERY
@pytest.mark.parametrize("text", ["7", "12.5", "00 red 13", "at 2024?", "419.5\n007"])
def test_a_digit_is_a_token_wherever_it_stands(tokenizers, family, text):
    tokenizer = tokenizers[family]
    single = set(tokenizer.convert_tokens_to_ids(list(TIME_CHARACTERS)))
    assert len(single) == len(TIME_CHARACTERS) and tokenizer.unk_token_id not in single
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    digits = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in single]
    assert "".join(digits) == "".join(c for c in text if c in TIME_CHARACTERS)


@EVERY
def test_it_is_a_fast_tokenizer_of_the_family_with_its_control_tokens(tokenizers, family):
    tokenizer = tokenizers[family]
    assert tokenizer.is_fast and len(tokenizer) <= VOCABULARY + len(SPECIALS[family]) + 8
    for token in SPECIALS[family]:
        assert tokenizer.encode(token, add_special_tokens=False) == [tokenizer.convert_tokens_to_ids(token)]


@pytest.mark.parametrize(("family", "template"), [(f, t) for f in BACKBONES for t in OWN_TEMPLATES[f]])
def test_a_conversation_survives_the_templates_of_its_family(tokenizers, family, template):
    tokenizer = tokenizers[family]
    turns = [Turn("user", "Which is first?"), Turn("assistant", "red"), Turn("user", "Which is last?")]
    spans = render(TEMPLATES[template], turns, add_generation_prompt=True)
    ids, learn = encode(tokenizer, spans)
    assert tokenizer.decode(ids) == "".join(span.text for span in with_end_of_text(tokenizer, spans))
    learned = [i for i, told in zip(ids, learn, strict=True) if told]
    assert tokenizer.decode(learned[:-1]).strip() == "red" and learned[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in stop_ids(TEMPLATES[template], tokenizer)


# --- language models ---


@EVERY
def test_a_checkpoint_is_what_its_seed_makes(tiny, family):
    """The folder gives back the very model that the seed made, through transformers' own doors."""
    loaded = AutoModelForCausalLM.from_pretrained(tiny / family).eval()
    torch.manual_seed(0)
    made = load_target(LANGUAGE_MODELS[family][1])(AutoConfig.from_pretrained(tiny / family)).eval()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert type(loaded) is type(made) and torch.equal(loaded(ids).logits, made(ids).logits)


@EVERY
def test_saved_again_is_the_same_again(tiny, tmp_path, family):
    loaded, tokenizer = (x.from_pretrained(tiny / family) for x in (AutoModelForCausalLM, AutoTokenizer))
    loaded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, loaded.eval()(ids).logits)
    text = "00 red circle left\nWhich is first?"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


@EVERY
def test_the_same_settings_make_the_same_files(tiny, tmp_path, family):
    texts = corpus_text(WORLD, CORPUS, count=60)
    make_language_model(tmp_path / "same", family, texts, **shape_of(family))
    make_language_model(tmp_path / "other", family, texts, seed=1, **shape_of(family))
    for path in (tiny / family).iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes(), path.name
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("same", "other")]
    assert weights[0] != weights[1]


@EVERY
def test_the_config_is_the_shape_that_was_asked_for_and_leaves_room(tiny, tokenizers, family):
    config = AutoConfig.from_pretrained(tiny / family)
    assert {key: getattr(config, key) for key in {**LM_SHAPE, **SHAPE}} == {**LM_SHAPE, **SHAPE}
    assert config.vocab_size % 64 == 0 and config.vocab_size >= len(tokenizers[family]) + 16
    assert config.eos_token_id == tokenizers[family].eos_token_id and config.model_type == family


# --- towers, and what there is not ---


@pytest.mark.parametrize("kind", TOWERS)
def test_a_tower_is_what_its_seed_makes(tmp_path, kind):
    shape = dict(hidden_size=32, intermediate_size=48, num_attention_heads=2)
    pixels = torch.randn(2, 3, 48, 48)
    outputs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_tower(tmp_path / name, kind, seed, **shape)
        tower = AutoModel.from_pretrained(tmp_path / name).eval()
        assert tower.config.hidden_size == 32 and tower.config.model_type == f"{kind}_vision_model"
        outputs.append(tower(pixel_values=pixels).last_hidden_state)
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    "make", [lambda p: make_language_model(p, "lama", []), lambda p: make_tower(p, "clp")]
)
def test_an_unknown_family_is_answered_with_the_near_one(tmp_path, make):
    with pytest.raises(ValueError, match="Did you mean '(llama|clip)'"):
        make(tmp_path / "x")


def test_without_the_package_of_the_real_model_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="setup.sh test small"):
        smollm2.find_gguf()
