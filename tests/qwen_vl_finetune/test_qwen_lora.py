"""Adapters: where they sit, that all learn, that a saved one is the trained one, how many a 7B model has."""

import shutil
from pathlib import Path

import pytest
import torch

from quicksviewer.qwen_vl_finetune.data_processing import convert_to_conversation
from quicksviewer.qwen_vl_finetune.load import load
from quicksviewer.qwen_vl_finetune.lora import (
    PARTS,
    LoraSettings,
    attach,
    find_targets,
    load_with_adapter,
    merged,
    silent_adapters,
)
from quicksviewer.qwen_vl_finetune.model_setup import (
    load_lora_model,
    push_to_hub_merged,
    save_merged_model,
    save_model,
)
from quicksviewer.qwen_vl_finetune.prompts import Collator
from quicksviewer.utils.config import build
from quicksviewer.utils.modules import count_parameters

SHAPES = Path(__file__).resolve().parents[2] / "configs" / "shapes"
ALL_PARTS = LoraSettings(targets=dict.fromkeys(PARTS, ()))


@pytest.fixture
def batch(loaded, formulas):
    return Collator(loaded.processor)([convert_to_conversation(formulas[n]) for n in range(3)])


def one_step(model, batch, rate: float = 0.5) -> None:
    model.train()
    model(**batch).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate).step()
    model.eval()


def logits(model, batch):
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_fresh_adapters_change_nothing_and_all_learn_in_both_towers(small, batch, bits):
    model = load(small, bits, device="cpu").model
    before = logits(model, batch)
    adapted = attach(model, ALL_PARTS)
    assert torch.equal(logits(adapted, batch), before)
    learn = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert learn and all("lora_" in name for name in learn)
    assert len(silent_adapters(adapted)) == len(learn)
    one_step(adapted, batch)
    assert silent_adapters(adapted) == []
    for part, prefix in PARTS.items():
        mine = [p for name, p in adapted.named_parameters() if prefix in name and "lora_B" in name]
        assert mine and all(p.grad.abs().sum() > 0 for p in mine), part
    assert not torch.equal(logits(adapted, batch), before)


@pytest.mark.parametrize("bits", [16, 4])
def test_a_saved_adapter_gives_the_trained_logits(small, loaded, batch, bits, tmp_path):
    adapted = attach(load(small, bits, device="cpu").model)
    one_step(adapted, batch)
    save_model(adapted, loaded.processor, tmp_path)
    again, processor = load_lora_model(tmp_path, load_in_4bit=bits == 4, device="cpu")
    assert torch.equal(logits(again, batch), logits(adapted, batch))
    assert processor.tokenizer.get_vocab() == loaded.processor.tokenizer.get_vocab()
    assert not any(p.requires_grad for p in again.parameters())


def test_saved_loaded_and_merged_are_one_model(loaded, batch, tmp_path):
    adapted = attach(loaded.model, ALL_PARTS)
    one_step(adapted, batch)
    trained = logits(adapted, batch)
    save_model(adapted, loaded.processor, tmp_path / "adapter")
    again = load_with_adapter(tmp_path / "adapter", bits=16, device="cpu").model
    save_merged_model(again, loaded.processor, tmp_path / "merged", dtype=None)
    whole = load(tmp_path / "merged", bits=16, device="cpu")
    torch.testing.assert_close(logits(whole.model, batch), trained, atol=2e-5, rtol=1e-5)
    assert torch.equal(logits(adapted, batch), trained), "merging must leave the model as it is"
    save_merged_model(again, loaded.processor, tmp_path / "half")
    assert load(tmp_path / "half", bits=16, device="cpu").model.dtype == torch.bfloat16


def test_the_merged_model_is_uploaded_and_the_token_goes_to_the_hub_alone(
    loaded, tmp_path, monkeypatch, caplog
):
    """A stand-in keeps what the hub would get."""
    import huggingface_hub

    class Hub:
        def __init__(self, token):
            self.token = token

        def create_repo(self, name, exist_ok):
            assert (self.token, name, exist_ok) == ("hf_secret", "me/formulas", True)

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, tmp_path / "hub")
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    adapted = attach(loaded.model)
    assert (
        push_to_hub_merged(adapted, loaded.processor, "me/formulas", "hf_secret") == "https://hub/me/formulas"
    )
    assert load(tmp_path / "hub", bits=16, device="cpu").model.dtype == torch.bfloat16
    assert "hf_secret" not in caplog.text
    assert not any(b"hf_secret" in path.read_bytes() for path in (tmp_path / "hub").iterdir())


def test_merging_over_4_bits_uses_all_bits_of_the_base(small, batch, tmp_path):
    adapted = attach(load(small, 4, device="cpu").model)
    one_step(adapted, batch)
    adapted.save_pretrained(tmp_path / "adapter")
    exact = load_with_adapter(tmp_path / "adapter", bits=16, device="cpu").model
    torch.testing.assert_close(logits(merged(adapted), batch), logits(exact, batch), atol=2e-5, rtol=1e-5)
    load(small, 4, device="cpu").model.save_pretrained(tmp_path / "stored")
    with pytest.raises(ValueError, match="is stored quantised; give `base`"):
        merged(adapted, tmp_path / "stored")
    with pytest.raises(ValueError, match="no adapters to merge"):
        merged(load(small, 16, device="cpu").model)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"lm": ("q_prj",)}, "'q_prj' matches none of its 21 linear layers. Did you mean 'q_proj'"),
        ({"vit": ("*.blocks.7.*",)}, r"LoRA on vit: '\*\.blocks\.7\.\*' matches none"),
        ({"vit": ("visual.proj",)}, "'visual.proj' matches none"),
        ({"merger": ("mlp.1",)}, "'mlp.1' matches none of its 2"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(loaded, targets, message):
    with pytest.raises(ValueError, match=message):
        attach(loaded.model, LoraSettings(targets=targets))


def test_targets_are_the_layers_that_were_named(loaded):
    names = find_targets(loaded.model, {"vit": ("*.blocks.1.*", "blocks.0.attn.qkv"), "lm": ("q_proj",)})
    visual, text = "model.visual.blocks", "model.language_model.layers"
    ends = ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert set(names) == {
        f"{visual}.0.attn.qkv",
        *(f"{visual}.1.{end}" for end in ends),
        *(f"{text}.{layer}.self_attn.q_proj" for layer in range(3)),
    }
    with pytest.raises(ValueError, match="has no linear layer under model.visual.merger"):
        find_targets(torch.nn.Sequential(), {"merger": ()})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"r": 0}, "r and alpha must be positive"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"bias": "some"}, "bias must be one of"),
        ({"targets": {"llm": []}}, "unknown part of the model 'llm'. Did you mean 'lm'"),
        ({"rank": 8}, "has no 'rank'"),
    ],
)
def test_settings_refuse_nonsense(wrong, message):
    with pytest.raises(ValueError, match=message):
        build(LoraSettings, wrong, "lora")


def test_a_stranger_among_the_saved_weights_is_an_error(loaded, tmp_path):
    from safetensors.torch import load_file, save_file

    attach(loaded.model).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    first = next(iter(weights))
    weights["elsewhere.lora_A.weight"] = weights.pop(first)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit the model: 2 weights differ"):
        load_with_adapter(tmp_path, bits=16, device="cpu")


def expected_of_7b(rank: int, merger: bool) -> int:
    """rank x (inputs + outputs) of every linear layer, from the published sizes."""
    vit = 32 * ((1280 + 3840) + (1280 + 1280) + 3 * (1280 + 3420))
    lm = 28 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    return rank * (vit + lm + merger * ((5120 + 5120) + (5120 + 3584)))


def test_the_7b_model_has_the_published_number_of_trainable_parameters():
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    config = AutoConfig.from_pretrained(SHAPES / "Qwen2.5-VL-7B-Instruct")
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    assert count_parameters(model) == 8_292_166_656
    assert len(find_targets(model, ALL_PARTS.targets)) == 32 * 5 + 2 + 28 * 7
    adapted = attach(model)
    assert count_parameters(adapted, trainable_only=True) == expected_of_7b(16, merger=False) == 51_521_536
