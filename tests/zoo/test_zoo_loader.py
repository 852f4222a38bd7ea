"""What load_model takes and refuses: names, devices, numbers, quantisation, code that a checkpoint brings."""

import json
import shutil
import sys

import pytest
import torch

from quicksviewer.utils.modules import quantised_modules
from quicksviewer.zoo import ModelLoader, load_model, load_model_from_path
from quicksviewer.zoo.options import DTYPES, LoadOptions, options_from, to_device, to_dtype
from quicksviewer.zoo.registry import MODEL_REGISTRY


def copied(folder, target, **changes):
    """A copy of a checkpoint whose config has other entries; None takes one away."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    config = json.loads((target / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(config))
    return target


# --- the dict and the class


def test_without_its_processor_a_result_has_the_model_alone(checkpoint):
    folder = checkpoint("blip", "vqa")
    assert set(load_model(folder, device="cpu", load_processor=False)) == {"model"}
    loader = ModelLoader(folder, device="cpu")
    with pytest.raises(RuntimeError, match="is not loaded yet: call load"):
        loader.get_model()
    result = loader.load(load_processor=False)
    assert loader.get_model() is result["model"]
    for get in (loader.get_processor, loader.get_tokenizer, loader.get_image_processor):
        with pytest.raises(RuntimeError, match="was loaded without"):
            get()


def test_getters_give_what_load_gave_and_overrides_hold_for_one_time(checkpoint):
    loader = ModelLoader(checkpoint("blip", "vqa"), "blip", device="cpu", dtype="float16")
    first = loader.load()
    getters = (loader.get_model, loader.get_processor, loader.get_tokenizer, loader.get_image_processor)
    assert [get() for get in getters] == [
        first[key] for key in ("model", "processor", "tokenizer", "image_processor")
    ]
    assert first["model"].dtype == torch.float16
    assert loader.load(dtype="bfloat16")["model"].dtype == torch.bfloat16
    assert loader.load()["model"].dtype == torch.float16


def test_a_loader_reads_nothing_before_load():
    loader = ModelLoader("Salesforce/blip-vqa-base", model_type="blip")
    assert loader.MODEL_REGISTRY is MODEL_REGISTRY


# --- names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model_type="blib"), "unknown model type 'blib'. Did you mean 'blip'"),
        (dict(model_type="blip", task="vaq"), "unknown task of blip 'vaq'. Did you mean 'vqa'"),
        (dict(model_type="clip", task="vqa"), "unknown task of clip 'vqa'. Known: image_text_retrieval"),
        (dict(load_in_4bits=True), "has no 'load_in_4bits'. Did you mean 'load_in_4bit'"),
        (dict(load_in_4bit=True, load_in_8bit=True), "choose one of load_in_4bit and load_in_8bit"),
        (dict(dtype="float16", torch_dtype="float16"), "dtype and torch_dtype are the same: give one"),
        (dict(dtype="float17"), "unknown dtype 'float17'"),
        (dict(trust_remote_code="yes"), "trust_remote_code: expected bool"),
        (dict(device="gpu"), "'gpu' is no device"),
        (dict(device="cpu", device_map="auto"), "device and device_map both say where"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_nonsense_is_refused_before_a_file_is_read(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ModelLoader("nowhere", **arguments)


def test_a_checkpoint_of_another_family_or_task_says_what_it_is(checkpoint):
    with pytest.raises(ValueError, match="is a 'clip', which belongs to 'clip', not to 'blip'"):
        load_model(checkpoint("clip", "image_text_retrieval"), "blip", device="cpu")
    with pytest.raises(ValueError, match="unknown task of clip 'vqa'"):
        load_model(checkpoint("clip", "image_text_retrieval"), device="cpu")
    with pytest.raises(
        ValueError, match=r"lacks \d+ weights of BlipForQuestionAnswering, .*saved from BlipForCond"
    ):
        load_model(checkpoint("blip", "conditional_generation"), device="cpu")


def test_a_missing_folder_is_not_called_a_bad_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, told in {
        "a/b/c": f"that can be had from the hub: there is no folder at a/b/c in {tmp_path}",
        "output/easy_vqa/processor": "it is made by python -m quicksviewer.data.easy_vqa",
        "output/blip_vqa/lost": "it is made by python -m quicksviewer train --recipe blip_vqa",
    }.items():
        with pytest.raises(FileNotFoundError, match=f"{name} is neither a folder nor a model .*{told}$"):
            load_model(name, device="cpu")


def test_what_is_not_there_says_so(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match="nowhere/at-all is neither a folder nor a model"):
        load_model("nowhere/at-all", device="cpu")
    with pytest.raises(FileNotFoundError, match="blip-itm-base-coco"):
        load_model("Salesforce/blip-base", "blip", "image_text_retrieval", device="cpu")
    with pytest.raises(FileNotFoundError, match="no checkpoint of a model: it has no config.json"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON of a config"):
        load_model(tmp_path, device="cpu")
    bare = copied(checkpoint("blip", "vqa"), tmp_path / "bare")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises((ValueError, OSError)):
        load_model(bare, device="cpu")
    assert load_model(bare, device="cpu", load_processor=False)["model"] is not None


def test_weights_that_are_not_there_are_no_random_ones(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copied(checkpoint("blip", "image_text_retrieval"), tmp_path / "less")
    tensors = load_file(folder / "model.safetensors")
    del tensors["itm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for load in (load_model, load_model_from_path):
        options = {"task": "image_text_retrieval"} if load is load_model else {}
        with pytest.raises(ValueError, match=r"lacks 1 weights .*'itm_head.weight'"):
            load(folder, device="cpu", **options)


def test_a_damaged_weight_file_is_named(checkpoint, tmp_path):
    folder = copied(checkpoint("blip", "vqa"), tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut has a damaged weight file"):
        load_model(folder, device="cpu")


def test_a_family_that_no_row_names_is_chosen_by_transformers(tmp_path):
    from transformers import AltCLIPConfig, AltCLIPModel

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    text = sizes | dict(vocab_size=40, max_position_embeddings=20, project_dim=16)
    vision = sizes | dict(image_size=16, patch_size=8)
    config = AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    AltCLIPModel(config).save_pretrained(tmp_path)
    given = dict(task="image_text_retrieval", device="cpu", load_processor=False)
    assert type(load_model(tmp_path, **given)["model"]) is AltCLIPModel
    assert type(load_model_from_path(tmp_path, device="cpu")) is AltCLIPModel


# --- devices and numbers


def test_no_device_is_cuda_where_there_is_one():
    assert to_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert to_device("cpu") == to_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="cuda:63 was asked for, and this machine has"):
        to_device("cuda:63")


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_numbers_may_be_named_in_any_way(name, key, checkpoint, pictures, recwarn):
    for value in (DTYPES[name], name, f"torch.{name}"):
        assert to_dtype(value) is DTYPES[name]
    result = load_model(checkpoint("blip", "vqa"), device="cpu", load_processor=False, **{key: DTYPES[name]})
    assert {p.dtype for p in result["model"].parameters()} == {DTYPES[name]}
    assert not [w for w in recwarn if "torch_dtype" in str(w.message)]


def test_the_numbers_of_the_checkpoint_are_the_default(checkpoint, tmp_path):
    half = load_model(checkpoint("blip", "vqa"), device="cpu", dtype="float16", load_processor=False)["model"]
    half.save_pretrained(tmp_path)
    for options in ({}, {"dtype": "auto"}, {"torch_dtype": None}):
        model = load_model(tmp_path, device="cpu", load_processor=False, **options)["model"]
        assert model.dtype == torch.float16


def test_a_device_map_is_handed_on(checkpoint):
    model = load_model(checkpoint("blip", "vqa"), device_map="auto", load_processor=False)["model"]
    assert {p.device.type for p in model.parameters()} == {to_device(None).type}
    arguments = options_from({"device_map": "auto"}).arguments(torch.device("cpu"))
    assert arguments["device_map"] == "auto"
    assert "device_map" not in LoadOptions().arguments(torch.device("cpu"))


# --- few bits


@pytest.mark.parametrize("bits", [4, 8])
def test_without_bitsandbytes_few_bits_are_an_error_and_not_the_whole(bits, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"bitsandbytes is missing: pip install 'quicksviewer\[quant\]'"
    ):
        load_model(checkpoint("blip", "vqa"), device="cpu", **{f"load_in_{bits}bit": True})


def test_a_model_in_which_nothing_was_packed_is_an_error(checkpoint):
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_skip_modules=["vision_model", "text_encoder", "text_decoder"]
    )
    with pytest.raises(ValueError, match="nothing of BlipForQuestionAnswering was quantised"):
        load_model(checkpoint("blip", "vqa"), device="cpu", quantization_config=settings)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_is_saved_and_loaded_as_it_is(bits, checkpoint, tmp_path):
    from quicksviewer.zoo import save_model

    first = load_model(checkpoint("blip", "vqa"), device="cpu", **{f"load_in_{bits}bit": True})
    save_model(first["model"], tmp_path, first["tokenizer"], first["processor"])
    again = load_model(tmp_path, device="cpu", load_processor=False)["model"]
    assert quantised_modules(again) == quantised_modules(first["model"]) != []
    before, after = first["model"].state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if torch.is_tensor(before[key]))
    with pytest.raises(ValueError, match=r"is quantised already \(bitsandbytes\)"):
        load_model(tmp_path, device="cpu", load_in_4bit=True)


# --- trust


def test_code_that_a_checkpoint_brings_is_not_run(checkpoint, tmp_path):
    """Neither for a family that the registry knows, nor for one that only the code would explain."""
    mark, code = tmp_path / "ran", "from pathlib import Path\nPath({!r}).touch()\n"
    maps = {
        "AutoConfig": "code.Config",
        "AutoModelForImageTextToText": "code.Model",
        "AutoProcessor": "code.P",
    }
    known = copied(checkpoint("blip", "vqa"), tmp_path / "known", auto_map=maps, trust_remote_code=True)
    other = copied(checkpoint("blip", "vqa"), tmp_path / "other", auto_map=maps, model_type="invented")
    for folder in (known, other):
        (folder / "code.py").write_text(code.format(str(mark)))
    assert load_model(known, device="cpu")["model"].config.model_type == "blip"
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(other, device="cpu")
    assert not mark.exists()


def test_a_model_of_this_project_says_what_it_does_not_take(checkpoint):
    folder = checkpoint("quicksviewer", "vqa")
    with pytest.raises(ValueError, match="is loaded without device_map, trust_remote_code"):
        load_model(folder, device_map="auto", trust_remote_code=True)
