"""Saving and loading folders: transformers' models, any module, what lies there already."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from quicksviewer.zoo import load_model_from_path, save_model
from quicksviewer.zoo.blip_writing import BlipForQuestionAnswering


class Own(nn.Module):
    """No model of transformers; two of its weights are one."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.zeros(1))


@pytest.mark.parametrize("given", [None, transformers.BlipForQuestionAnswering, BlipForQuestionAnswering])
def test_a_blip_comes_as_the_class_of_the_zoo(given, loaded, tmp_path):
    result = loaded("blip", "vqa")
    assert (
        save_model(result["model"], tmp_path / "a" / "b", processor=result["processor"]) == tmp_path / "a/b"
    )
    again = load_model_from_path(tmp_path / "a" / "b", given, device="cpu")
    assert type(again) is BlipForQuestionAnswering and not again.training
    assert isinstance(again, transformers.BlipForQuestionAnswering)
    plain = transformers.AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "a" / "b")
    assert type(plain) is transformers.BlipForQuestionAnswering, "it is a checkpoint of transformers"


def test_another_class_of_transformers_is_taken_as_it_is(loaded, tmp_path):
    save_model(loaded("clip", "image_text_retrieval")["model"], tmp_path)
    model = load_model_from_path(tmp_path, transformers.CLIPVisionModel, device="cpu")
    assert type(model) is transformers.CLIPVisionModel


def test_any_module_is_saved_and_filled_again(tmp_path):
    first = Own()
    first.count += 3
    save_model(first, tmp_path)
    again = load_model_from_path(tmp_path, Own, device="cpu")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    assert again.second.weight is again.first.weight and not again.training
    with pytest.raises(ValueError, match="weights of a module of your own: give its model_class"):
        load_model_from_path(tmp_path, device="cpu")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_model_from_path(tmp_path, lambda: Own(8), device="cpu")


def test_what_is_not_there(tmp_path):
    for given in (None, Own, transformers.BlipForQuestionAnswering):
        with pytest.raises(FileNotFoundError):
            load_model_from_path(tmp_path / "nothing", given)
        with pytest.raises(FileNotFoundError):
            load_model_from_path(tmp_path, given)


def test_saving_again_leaves_no_old_weights_and_no_scratch(loaded, tmp_path):
    result = loaded("blip", "vqa")
    folder = tmp_path / "model"
    result["model"].save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    (folder / "notes.txt").write_text("mine")
    save_model(result["model"], folder, result["tokenizer"], result["processor"])
    assert [p.name for p in folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert (folder / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_adapter_lies_beside_the_weights_of_its_base(loaded, tmp_path):
    peft = pytest.importorskip("peft")
    result, folder = loaded("blip", "vqa"), tmp_path / "model"
    save_model(result["model"], folder, processor=result["processor"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    base = load_model_from_path(folder, device="cpu")
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query"], init_lora_weights=False))
    adapter = folder / "adapter_model.safetensors"
    (folder / "adapter_model.bin").write_bytes(b"of an earlier one")
    save_model(adapted, folder)
    assert adapter.is_file() and not (folder / "adapter_model.bin").exists()
    assert {name: (folder / name).read_bytes() for name in before} == before
    learned = {n.removeprefix("base_model.model."): p for n, p in adapted.named_parameters() if "lora" in n}
    found = dict(load_model_from_path(folder, device="cpu").named_parameters())
    assert learned and all(torch.equal(found[name], p) for name, p in learned.items())
    kept = adapter.read_bytes()
    save_model(result["model"], folder)
    assert adapter.read_bytes() == kept and (folder / "model.safetensors").is_file()


def test_the_folder_in_which_the_program_runs_can_be_saved_to(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    first = Own()
    assert save_model(first, ".") == Path(".")
    again = load_model_from_path(".", Own, device="cpu")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "model.safetensors"]


def test_a_save_that_fails_leaves_the_folder_as_it_was(loaded, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    result = loaded("blip", "vqa")
    save_model(result["model"], tmp_path / "m", result["tokenizer"])
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    nn.init.zeros_(result["model"].vision_model.post_layernorm.weight)
    with pytest.raises(OSError, match="disk full"):
        save_model(result["model"], tmp_path / "m", processor=Broken())
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
