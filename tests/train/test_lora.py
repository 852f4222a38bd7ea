"""Adapters lie where they were asked for; quantised or not, a checkpoint gives the logits of training."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import run
from tiny_world import fresh, video_row, videos
from torch import nn

from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.model.builder import load_pretrained_model, new_model, quantization
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.checkpoint import load_extras, save_extras
from quicksviewer.train.lora import add_lora, check_lora, lora_targets
from quicksviewer.train.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
ADAPTABLE = ("vision_tower", "cubing", "resampler", "projector", "llm")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra: quant)"
)


def flags(**given):
    defaults = dict(lora_enable=True, lora_parts="llm", lora_targets=None, lora_r=4, lora_alpha=8, bits=16)
    return SimpleNamespace(**defaults | dict(lora_dropout=0.0, lora_bias="none") | given)


def seeing(tiny, **kwargs):
    """A tiny model with a projector that has layers."""
    return fresh(tiny, projector={"kind": "mlp2x_gelu"}, **kwargs)


def adapted_layers(peft) -> set[str]:
    """Layers that hold an adapter, by their names without PEFT."""
    return {
        name.removeprefix("base_model.model.")
        for name, module in peft.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("part", ADAPTABLE)
def test_adapters_are_on_the_linear_layers_of_a_part_and_nowhere_else(tiny, part):
    model = seeing(tiny).model
    inside = tuple(f"{prefix}." for prefix in PARTS[part] if prefix != "lm_head")
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(inside)
    }
    assert set(lora_targets(model, (part,))) == linear
    assert adapted_layers(add_lora(model, flags(lora_parts=part), "stage3")) == linear


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("parts", [("llm",), ("vision_tower", "llm"), ("resampler", "cubing")])
def test_a_part_with_adapters_keeps_its_own_weights_and_the_others_follow_the_stage(tiny, stage, parts):
    peft = add_lora(seeing(tiny).model, flags(lora_parts=",".join(parts)), stage)
    for key, parameter in peft.named_parameters():
        name = key.removeprefix("base_model.model.")
        part = next(p for p, prefixes in PARTS.items() if name.startswith(tuple(f"{x}." for x in prefixes)))
        expected = "lora_" in name if part in parts else part in STAGES[stage]
        assert parameter.requires_grad == expected, name


@pytest.mark.parametrize(
    ("patterns", "ends"),
    [
        (("q_proj", "v_proj"), {"q_proj", "v_proj"}),
        (("self_attn.o_proj",), {"o_proj"}),
        (
            ("model.layers.0.*",),
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
        (("*.mlp.[gu]*",), {"gate_proj", "up_proj"}),
    ],
)
def test_patterns_choose_within_the_parts(tiny, patterns, ends):
    names = lora_targets(seeing(tiny).model, ("llm",), patterns)
    assert {name.rpartition(".")[2] for name in names} == ends
    assert all(name.startswith("model.layers.") for name in names)
    if patterns[0].startswith("model.layers.0"):
        assert all(name.startswith("model.layers.0.") for name in names)


def test_a_pattern_without_a_match_is_an_error_that_lists_what_there_is(tiny):
    model = seeing(tiny).model
    with pytest.raises(ValueError, match=r"'q_projj' matches none .*Did you mean 'q_proj'.*down_proj, gate"):
        lora_targets(model, ("llm",), ("v_proj", "q_projj"))
    with pytest.raises(ValueError, match="special_tokens has no linear layer"):
        lora_targets(model, ("special_tokens",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(lora_parts="llm,vision"), "unknown part .*'vision'"),
        (dict(lora_parts=" , "), "names no part"),
        (dict(bits=5), "one of 4, 8, 16, got 5"),
        (dict(bits=4, lora_enable=False), "--bits 4 needs --lora_enable"),
        (dict(bits=8, lora_parts="resampler"), "name llm in --lora_parts"),
        (dict(lora_targets="q_proj", lora_enable=False), "--lora_targets needs --lora_enable"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_lora(flags(**given))


def train_two_steps(loaded, peft, batch):
    """Two steps of SGD, large enough to show in the logits."""
    trained = [p for p in peft.parameters() if p.requires_grad]
    peft.train()
    for _ in range(2):
        loss = peft(**batch).loss
        for parameter, grad in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter.data -= 0.5 * grad.to(parameter.dtype)
    return peft.eval()


def batch_of(tiny, loaded):
    return DataCollatorForSupervisedDataset(loaded.processor.pad_id)([video_row(loaded, videos(tiny)[0])])


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def save(peft, loaded, folder):
    peft.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    save_extras(peft, folder)


def test_adapters_of_all_parts_are_in_the_checkpoint(tiny, tmp_path):
    loaded = seeing(tiny)
    peft = add_lora(loaded.model, flags(lora_parts=",".join(ADAPTABLE)), "stage3")
    batch = batch_of(tiny, loaded)
    start = logits(peft.eval(), batch)
    trained = logits(train_two_steps(loaded, peft, batch), batch)
    save(peft, loaded, tmp_path)
    again = logits(load_pretrained_model(str(tmp_path)).model, batch)
    assert (trained - start).abs().max() > 0.01
    assert torch.allclose(again, trained, atol=1e-5)


def test_what_was_saved_beside_adapters_goes_back_into_a_model_that_trains(tiny, tmp_path):
    first = add_lora(seeing(tiny).model, flags(lora_parts="vision_tower,resampler"), "stage3")
    before = {name: p.clone() for name, p in first.named_parameters()}
    save_extras(first, tmp_path)
    second = add_lora(seeing(tiny).model, flags(lora_parts="vision_tower,resampler"), "stage3")
    for parameter in second.parameters():
        parameter.data.zero_()
    load_extras(second, tmp_path)
    eyes = tuple(p for part, prefixes in PARTS.items() if part != "llm" for p in prefixes)
    for name, parameter in second.named_parameters():
        plain = name.removeprefix("base_model.model.")
        if plain.startswith(eyes) and "lora_" not in plain:
            assert torch.equal(parameter, before[name]), name


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_run_loads_to_the_logits_it_had(tiny, tmp_path, bits):
    import bitsandbytes as bnb

    dtype = torch.float32
    torch.manual_seed(0)
    loaded = new_model(
        str(tiny / "qwen2"),
        str(tiny / "siglip"),
        seeing(tiny).model.mm_config.to_dict(),
        "plain",
        {"max_frames": 16},
        dtype=dtype,
        quantization=quantization(bits, dtype),
    )
    kind = {4: bnb.nn.Linear4bit, 8: bnb.nn.Linear8bitLt}[bits]
    quantised = {name for name, module in loaded.model.named_modules() if isinstance(module, kind)}
    assert quantised == set(lora_targets(loaded.model))  # the language model's layers and nothing else
    if bits == 4:
        state = loaded.model.model.layers[0].mlp.up_proj.weight.quant_state
        assert state.quant_type == "nf4" and state.nested and loaded.model.dtype == dtype
    peft = add_lora(loaded.model, flags(bits=bits), "stage3")
    batch = batch_of(tiny, loaded)
    start = logits(peft.eval(), batch)
    trained = logits(train_two_steps(loaded, peft, batch), batch)
    assert (trained - start).abs().max() > 0.01
    save(peft, loaded, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    same = load_pretrained_model(str(tmp_path), dtype=dtype, load_4bit=bits == 4, load_8bit=bits == 8)
    assert torch.equal(logits(same.model, batch), trained)
    merged = logits(load_pretrained_model(str(tmp_path), dtype=dtype).model, batch)
    assert not torch.equal(merged, trained)  # the rounding of the base is gone


@needs_bitsandbytes
def test_a_quantised_run_learns_and_two_ranks_under_zero_2_follow_it(recipe, tmp_path):
    """Every step sees all eight rows, so that its losses are those of the same samples."""
    quantised = ["--lora_enable", "True", "--bits", "4", "--lora_dropout", "0", "--max_steps", "6"]
    single = run(recipe, tmp_path / "one", 1, *quantised, "--per_device_train_batch_size", "8")
    zero = ["--per_device_train_batch_size", "4", "--deepspeed", str(ROOT / "zero2.json")]
    double = run(recipe, tmp_path / "two", 2, *quantised, *zero)
    assert len(single) == len(double) == 6 and single[-1]["loss"] < single[0]["loss"] - 0.3
    for ours, reference in zip(double, single, strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=2e-4)
    report = {row["part"]: row for row in json.loads((tmp_path / "two/trainable.json").read_text())}
    assert 0 < report["llm"]["trainable"] < report["llm"]["parameters"]
    load_pretrained_model(str(tmp_path / "two"), load_4bit=True)
