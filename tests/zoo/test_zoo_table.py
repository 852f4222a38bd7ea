"""Every family and task of the registry: loaded, asked, saved and loaded again, in full and in few bits."""

from functools import partial

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quicksviewer.utils.modules import quantised_modules
from quicksviewer.utils.registry import load_target
from quicksviewer.zoo import MODEL_REGISTRY, ModelLoader, load_model, load_model_from_path, save_model
from quicksviewer.zoo.ask import ASK, ask
from quicksviewer.zoo.registry import AUTO, FAMILIES

CELLS = [(family, task) for family, row in FAMILIES.items() for task in row.tasks if family != AUTO]
"""Every family and task."""
SINGLE = [cell for number, cell in enumerate(CELLS) if cell[0] not in dict(CELLS[:number])]
"""One task of each family whose tasks share a class, all of BLIP."""
DISTINCT = sorted({*SINGLE, *(cell for cell in CELLS if cell[0] == "blip")})


def same_weights(a, b) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(("family", "task"), CELLS)
def test_a_checkpoint_is_loaded_whole_asked_saved_and_loaded_again(
    family, task, loaded, checkpoint, pictures, tmp_path
):
    result = loaded(family, task)
    assert set(result) == {"model", "processor", "tokenizer", "image_processor"}
    model = result["model"]
    assert isinstance(model, PreTrainedModel) and not model.training
    assert isinstance(result["tokenizer"], PreTrainedTokenizerBase)
    assert result["processor"].tokenizer is result["tokenizer"]
    said = ask(family, task, result, pictures[0], "what color is it?")
    assert isinstance(said, str)
    save_model(model, tmp_path, result["tokenizer"], result["processor"])
    again = load_model(tmp_path, task=task, device="cpu")
    assert type(again["model"]) is type(model) and same_weights(again["model"], model)
    assert ask(family, task, again, pictures[0], "what color is it?") == said
    assert same_weights(load_model_from_path(tmp_path, device="cpu"), model)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("family", "task"), DISTINCT)
def test_few_bits_are_few_bits_and_close_to_the_whole(family, task, bits, loaded, pictures):
    whole = loaded(family, task, load_processor=False)["model"]
    result = loaded(family, task, **{f"load_in_{bits}bit": True})
    model = result["model"]
    packed = quantised_modules(model)
    assert packed and not any(name.endswith(FAMILIES[family].precise) for name in packed)
    kinds = {type(model.get_submodule(name)).__name__ for name in packed}
    assert kinds == {"Linear4bit" if bits == 4 else "Linear8bitLt"}
    plain = [n for n, m in model.named_modules() if type(m) is torch.nn.Linear]
    seen = {}
    for key, one in (("whole", whole), ("few", model)):
        run = partial(ask, family, task, {**result, "model": one}, pictures[0], "what color is it?")
        seen[key] = first_outputs(one, plain, run)
    assert seen["few"] and seen["few"].keys() == seen["whole"].keys()
    for name, output in seen["few"].items():
        assert cosine(output, seen["whole"][name]) > {4: 0.9, 8: 0.99}[bits], name


def first_outputs(model, names, run) -> dict:
    """What the modules of these names give when `run` first calls them."""
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            seen.setdefault(name, output.detach().float())

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def cosine(a, b) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize(("family", "task"), SINGLE)
def test_auto_reads_the_config_and_not_the_name(family, task, checkpoint, tmp_path):
    (tmp_path / "blip-clip").symlink_to(checkpoint(family, task))
    for model_type in (None, "auto", family):
        loader = ModelLoader(tmp_path / "blip-clip", model_type, task=None, device="cpu")
        model = loader.load(load_processor=False)["model"]
        assert model.config.model_type in FAMILIES[family].model_types


def test_the_registry_lists_tasks_alone():
    assert ModelLoader.MODEL_REGISTRY is MODEL_REGISTRY
    assert list(MODEL_REGISTRY["blip"].keys()) == ["vqa", "conditional_generation", "image_text_retrieval"]
    for tasks in MODEL_REGISTRY.values():
        for target in tasks.values():
            assert hasattr(load_target(target), "from_pretrained")


def test_every_cell_can_be_asked_and_no_model_type_has_two_families():
    assert set(ASK) == {f"{family} {task}" for family, task in CELLS}
    types = [kind for row in FAMILIES.values() for kind in row.model_types]
    assert len(types) == len(set(types)) and FAMILIES[AUTO].model_types == ()


def test_the_video_models_of_this_project_are_all_there():
    assert set(FAMILIES["quicksviewer"].model_types) == set(load_target("quicksviewer.model.builder:OURS"))
