"""Loading: bits that run, a statement where they do not, adapters that fit."""

import json
import shutil

import pytest
import torch

from quicksviewer.qwen_vl_finetune import load as loading
from quicksviewer.qwen_vl_finetune.load import base_of, load
from quicksviewer.utils.modules import quantised_modules


@pytest.mark.parametrize(("bits", "kind"), [(None, "Linear4bit"), (4, "Linear4bit"), (8, "Linear8bitLt")])
def test_weights_are_held_in_the_bits_that_were_asked_for(small, bits, kind):
    found = load(small, bits, device="cpu")
    packed = quantised_modules(found.model)
    assert found.bits == (bits or 4) and f"{found.bits} bits" in found.statement
    assert {type(found.model.get_submodule(name)).__name__ for name in packed} == {kind}
    assert any("visual.blocks" in name for name in packed) and any("layers" in name for name in packed)
    assert "lm_head" not in packed


def test_all_bits_are_all_bits(small):
    found = load(small, 16, device="cpu")
    assert found.bits == 16 and quantised_modules(found.model) == [] and not found.model.training


def test_without_bitsandbytes_the_default_says_so_and_a_demand_is_an_error(small, monkeypatch, caplog):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    found = load(small, device="cpu")
    assert found.bits == 16 and quantised_modules(found.model) == []
    assert "bitsandbytes is missing" in found.statement and "bitsandbytes is missing" in caplog.text
    with pytest.raises(ValueError, match="bits=4: bitsandbytes is missing"):
        load(small, 4, device="cpu")


def test_a_device_that_cannot_quantise_is_named():
    assert loading.why_not_quantised(torch.device("mps")) == "bitsandbytes does not run on mps"


def test_a_checkpoint_that_is_stored_in_4_bits_keeps_them(small, tmp_path):
    first = load(small, 4, device="cpu")
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    found = load(tmp_path, device="cpu")
    assert found.bits == 4 and "stored in 4 bits" in found.statement
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(found.model(input_ids=ids).logits, first.model(input_ids=ids).logits)


def test_what_is_wrong_is_named(small, tmp_path):
    with pytest.raises(ValueError, match="bits must be one of 4, 8, 16, or None"):
        load(small, 5)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a model"):
        load("nobody/nothing", local_files_only=True)
    shutil.copytree(small, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(ValueError, match="quantised by 'gptq'; adapters train over bitsandbytes"):
        load(tmp_path / "odd")
    with pytest.raises(FileNotFoundError, match="holds no adapter: it has no adapter_config.json"):
        base_of(small)
