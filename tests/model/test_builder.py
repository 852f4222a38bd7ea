"""Checkpoint folders: read by what they say, complete or refused, wherever they lie."""

import json
import shutil
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_world import BACKBONES, MM, TOWERS, fresh, video_row, videos
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.model.builder import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    OTHER_FILE,
    is_ours,
    load_pretrained_model,
    new_model,
    read_model_type,
    read_tower,
)
from quicksviewer.train.checkpoint import save_extras
from quicksviewer.train.lora import lora_targets

CLASSES = {
    "qwen2": "LlavaQwenForCausalLM",
    "llama": "LlavaLlamaForCausalLM",
    "minimind": "LlavaMiniMindForCausalLM",
}
TEXT = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
DAMAGES = ("missing", "truncated", "empty")
WHOLE = {"siglip": (SiglipConfig, SiglipModel), "clip": (CLIPConfig, CLIPModel)}


def save(loaded, folder):
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


def logits(loaded, tiny) -> torch.Tensor:
    batch = DataCollatorForSupervisedDataset(loaded.processor.pad_id)([video_row(loaded, videos(tiny)[0])])
    with torch.no_grad():
        return loaded.model.eval()(**batch).logits


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def kept(tiny, tmp_path_factory):
    """A saved checkpoint of each backbone, to be copied."""
    root = tmp_path_factory.mktemp("kept")
    return {backbone: save(fresh(tiny, backbone), root / backbone) for backbone in BACKBONES}


@pytest.fixture
def checkpoint(kept, tmp_path):
    return shutil.copytree(kept["qwen2"], tmp_path / "checkpoint")


# --- what is in a folder is read from its config ---


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_name_of_a_folder_says_nothing(tiny, kept, tmp_path, backbone):
    other = {"qwen2": "llama-lora-clip-base", "llama": "Qwen2.5-7B-siglip", "minimind": "qwen2"}[backbone]
    moved = shutil.copytree(kept[backbone], tmp_path / other)
    loaded = load_pretrained_model(str(moved))
    assert type(loaded.model).__name__ == CLASSES[backbone] and is_ours(moved)
    assert torch.equal(logits(loaded, tiny), logits(fresh(tiny, backbone), tiny))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_loaded_is_ready_for_use(tiny, kept, backbone):
    loaded = load_pretrained_model(str(kept[backbone]), device="cpu", dtype=torch.bfloat16)
    assert not loaded.model.training and loaded.model.dtype == torch.bfloat16
    assert loaded.tokenizer is loaded.processor.tokenizer and loaded.context_length == 2048
    assert loaded.model.generation_config.eos_token_id == loaded.processor.stop_ids
    assert loaded.model.generation_config.pad_token_id == loaded.processor.pad_id
    assert load_pretrained_model(str(kept[backbone])).model.dtype == torch.float32
    assert (read_model_type(tiny / backbone), is_ours(tiny / backbone)) == (backbone, False)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_attention_can_be_chosen(tiny, kept, backbone):
    loaded = [load_pretrained_model(str(kept[backbone]), attn_implementation=a) for a in ("eager", "sdpa")]
    assert [one.model.config._attn_implementation for one in loaded] == ["eager", "sdpa"]
    torch.testing.assert_close(*(logits(one, tiny) for one in loaded), atol=1e-5, rtol=1e-4)


# --- what is no checkpoint ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no checkpoint folder: it has no config.json"),
        ("{}", "does not say its model_type"),
        ("{", "config.json is not JSON"),
        ("[1]", "config.json is not JSON"),
        ('{"model_type": "llava_qwen3"}', "unknown model type 'llava_qwen3'. Did you mean 'llava_qwen'"),
        (
            '{"model_type": "qwen2"}',
            "unknown model type 'qwen2'.*Known: llava_llama, llava_minimind, llava_qwen",
        ),
    ],
)
def test_another_folder_says_what_is_wrong(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pretrained_model(str(tmp_path))


def test_a_path_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no/where is no checkpoint folder"):
        load_pretrained_model("no/where")


def test_a_fresh_model_needs_a_plain_language_model_and_a_tower(tiny, kept):
    with pytest.raises(ValueError, match="unknown model type 'llava_qwen'. Known: llama, minimind, qwen2"):
        new_model(str(kept["qwen2"]), str(tiny / "siglip"), MM, "plain", {})
    with pytest.raises(ValueError, match="unknown vision tower 'llama'"):
        new_model(str(tiny / "qwen2"), str(tiny / "llama"), MM, "plain", {})
    with pytest.raises(ValueError, match="nowhere is no checkpoint folder"):
        new_model(str(tiny / "qwen2"), "nowhere", MM, "plain", {})


@pytest.mark.parametrize(
    ("change", "count"), [("lacks", "lacks 1 weights of"), ("has", "has 1 weights that no")]
)
def test_weights_that_do_not_fit_are_named(checkpoint, change, count):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    name = "vision_resampler.query" if change == "lacks" else "vision_resampler.old_query"
    if change == "lacks":
        del weights[name]
    else:
        weights[name] = torch.zeros(2)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{count}.*{name}"):
        load_pretrained_model(str(checkpoint))


def hurt(path, damage: str):
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_weight_file_is_named(tiny, tmp_path, checkpoint, damage):
    hurt(checkpoint / "model.safetensors", damage)
    with pytest.raises((ValueError, OSError), match=str(checkpoint)):
        load_pretrained_model(str(checkpoint))
    tower = shutil.copytree(tiny / "siglip", tmp_path / "tower")
    hurt(tower / "model.safetensors", damage)
    with pytest.raises((ValueError, OSError), match=str(tower)):
        new_model(str(tiny / "qwen2"), str(tower), MM, "plain", {})


def pickled(folder, name: str, other: str) -> None:
    """The same weights in the format that is not read."""
    torch.save(load_file(folder / name), folder / other)
    (folder / name).unlink()


def test_weights_that_would_have_to_be_unpickled_are_refused(tiny, tmp_path, checkpoint, lora, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    tower = shutil.copytree(tiny / "siglip", tmp_path / "tower")
    llm = shutil.copytree(tiny / "qwen2", tmp_path / "llm")
    for folder in (checkpoint, tower, llm):
        pickled(folder, "model.safetensors", "pytorch_model.bin")
    pickled(lora, ADAPTER_WEIGHTS, "adapter_model.bin")
    for folder in (checkpoint, lora):
        with pytest.raises((ValueError, OSError), match=str(folder)):
            load_pretrained_model(str(folder))
    for words, found in (((tiny / "qwen2", tower), tower), ((llm, tiny / "siglip"), llm)):
        with pytest.raises((ValueError, OSError), match=str(found)):
            new_model(*map(str, words), MM, "plain", {})


def test_timestamps_need_words_of_the_language_model(tiny, tmp_path):
    AutoTokenizer.from_pretrained(tiny / "qwen2").save_pretrained(tmp_path)
    Qwen2ForCausalLM(Qwen2Config(**TEXT, num_key_value_heads=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="exceed the 9 rows"):
        new_model(str(tmp_path), str(tiny / "siglip"), MM, "plain", {})


def test_both_quantisations_are_refused_and_a_missing_package_named(checkpoint, monkeypatch):
    with pytest.raises(ValueError, match="choose one"):
        load_pretrained_model(str(checkpoint), load_4bit=True, load_8bit=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"quicksviewer\[quant\]"):
        load_pretrained_model(str(checkpoint), load_4bit=True)


# --- towers ---


@pytest.mark.parametrize("kind", TOWERS)
def test_a_whole_checkpoint_gives_the_same_tower_as_the_vision_model_alone(tiny, tmp_path, kind):
    config_class, model_class = WHOLE[kind]
    vision = json.loads((tiny / kind / "config.json").read_text())
    shape = {k: v for k, v in vision.items() if k not in ("architectures", "transformers_version", "dtype")}
    shape["vision_use_head"] = True  # as published; ours are without
    whole = model_class(config_class(vision_config=shape, text_config=TEXT))
    weights = load_file(tiny / kind / "model.safetensors")
    whole.vision_model.load_state_dict(
        {name.removeprefix("vision_model."): w for name, w in weights.items()}, strict=False
    )
    whole.save_pretrained(tmp_path / "whole")
    alone, both = read_tower(tiny / kind), read_tower(tmp_path / "whole")
    shared = set(both["hf"]) - {"vision_use_head"}
    assert alone["kind"] == both["kind"] == kind and shared >= {"hidden_size", "patch_size", "image_size"}
    assert {key: both["hf"][key] for key in shared} == {key: alone["hf"].get(key) for key in shared}
    models = []
    for folder in (tiny / kind, tmp_path / "whole"):
        torch.manual_seed(0)
        models.append(new_model(str(tiny / "qwen2"), str(folder), MM, "plain", {"max_frames": 16}))
    assert torch.equal(logits(models[0], tiny), logits(models[1], tiny))


def test_a_tower_without_a_kind_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny / "siglip", tmp_path / "siglip-clip")
    change_config(folder, model_type="siglap_vision_model")
    with pytest.raises(ValueError, match="Did you mean 'siglip_vision_model'"):
        read_tower(folder)


# --- LoRA ---


def save_lora(loaded, folder):
    """A LoRA checkpoint whose adapter and vision side differ from their base; the model behind it."""
    targets = lora_targets(loaded.model)
    model = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=targets, task_type=None))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "vision_resampler" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    save_extras(model, folder)
    return model


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("base", ["plain", "ours"])
def test_a_lora_checkpoint_whose_base_was_moved(tiny, tmp_path, backbone, base):
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    shutil.copytree(tiny / backbone, place) if base == "plain" else save(fresh(tiny, backbone), place)
    if base == "plain":
        torch.manual_seed(0)
        towers = str(tiny / "siglip")
        loaded = new_model(str(place), towers, MM, "plain", {"max_frames": 16}, dtype=torch.float32)
    else:
        loaded = load_pretrained_model(str(place))
    without = logits(loaded, tiny)
    model = save_lora(loaded, tmp_path / "lora")
    batch = DataCollatorForSupervisedDataset(0)([video_row(loaded, videos(tiny)[0])])
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    assert (expected - without).abs().max() > 0.01
    torch.testing.assert_close(
        logits(load_pretrained_model(str(tmp_path / "lora")), tiny), expected, atol=1e-5, rtol=1e-4
    )
    place.rename(elsewhere)
    with pytest.raises(ValueError, match=f"{place} is no checkpoint folder"):
        load_pretrained_model(str(tmp_path / "lora"))
    moved = load_pretrained_model(str(tmp_path / "lora"), str(elsewhere))
    torch.testing.assert_close(logits(moved, tiny), expected, atol=1e-5, rtol=1e-4)
    assert type(moved.model).__name__ == CLASSES[backbone], "the adapter is merged"


@pytest.fixture
def lora(tiny, tmp_path):
    loaded = fresh(tiny)
    save_lora(loaded, tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("name", ["vision_resampler.query", "mm_tokens.weight"])
def test_a_lora_checkpoint_without_a_weight_of_the_vision_side_is_refused(lora, name):
    tensors = load_file(lora / OTHER_FILE)
    del tensors[name]
    save_file(tensors, lora / OTHER_FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{OTHER_FILE} lacks 1 weights.*{name}"):
        load_pretrained_model(str(lora))


def test_a_lora_checkpoint_with_a_strange_weight_is_refused(lora):
    tensors = load_file(lora / OTHER_FILE) | {"vision_resampler.old": torch.zeros(2)}
    save_file(tensors, lora / OTHER_FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="vision_resampler.old"):
        load_pretrained_model(str(lora))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [OTHER_FILE, ADAPTER_WEIGHTS])
def test_a_damaged_file_of_a_lora_checkpoint_is_refused(lora, name, damage):
    hurt(lora / name, damage)
    with pytest.raises((ValueError, OSError), match=str(lora)):
        load_pretrained_model(str(lora))


def test_an_adapter_that_lacks_weights_is_refused(lora):
    path = lora / ADAPTER_WEIGHTS
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        load_pretrained_model(str(lora))


def test_only_the_adapter_file_makes_a_lora_checkpoint(tiny, lora, kept, tmp_path):
    """The same folder without it is a broken full checkpoint, whatever its name."""
    (lora / ADAPTER_FILE).unlink()
    with pytest.raises((ValueError, OSError), match=str(lora)):
        load_pretrained_model(str(lora))
    named = shutil.copytree(kept["qwen2"], tmp_path / "lora-adapter")
    assert torch.equal(logits(load_pretrained_model(str(named)), tiny), logits(fresh(tiny), tiny))
