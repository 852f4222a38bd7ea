"""Tiny vision-language checkpoints: the same each time, complete, and with words of their own."""

import pytest
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from quicksviewer.synthetic.tiny_vlm import BLIP_TASKS, MAKERS, make_vlm
from quicksviewer.utils.manifest import sha256_of

TEXTS = ["what color is it?", "red", "a blue square"] * 4
CASES = [(kind, {}) for kind in MAKERS] + [("blip", {"task": task}) for task in BLIP_TASKS]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_seed_decides_every_byte(kind, options, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_vlm(tmp_path / name, kind, TEXTS, seed, **options)
    digest = {
        name: {p.name: sha256_of(p) for p in sorted((tmp_path / name).iterdir())} for name in ("a", "b", "c")
    }
    assert digest["a"] == digest["b"]
    assert [name for name in digest["a"] if digest["a"][name] != digest["c"][name]] == ["model.safetensors"]
    config = AutoConfig.from_pretrained(tmp_path / "a")
    assert config.model_type == kind
    assert AutoImageProcessor.from_pretrained(tmp_path / "a") is not None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    ids = tokenizer("a blue square")["input_ids"]
    assert tokenizer.unk_token_id not in ids[:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a blue square"
    assert max(ids) < config.get_text_config().vocab_size


def test_sizes_can_be_said_and_names_are_checked(tmp_path):
    make_vlm(tmp_path, "blip", TEXTS, text={"hidden_size": 32}, vision={"image_size": 48, "hidden_size": 32})
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.text_config.hidden_size, config.vision_config.image_size) == (32, 48)
    with pytest.raises(ValueError, match="unknown vision-language model 'blib'. Did you mean 'blip'"):
        make_vlm(tmp_path, "blib", TEXTS)
    with pytest.raises(ValueError, match="unknown task of blip 'vaq'"):
        make_vlm(tmp_path, "blip", TEXTS, task="vaq")
