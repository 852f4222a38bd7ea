"""Numbers and tables about models: tied and packed weights, two models side by side."""

import pytest
import torch
from torch import nn

from quicksviewer.zoo import (
    compare_models,
    count_parameters,
    freeze_model,
    get_model_info,
    get_model_size_mb,
    print_model_summary,
    unfreeze_model,
)


def test_counts_are_those_of_distinct_parameters(loaded):
    model = loaded("blip", "vqa")["model"]
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.vision_model.parameters())
    assert total < sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False)), "some are tied"
    freeze_model(model, ["vision_model"])
    assert count_parameters(model) == {
        "total": total,
        "trainable": total - vision,
        "non_trainable": vision,
        "total_millions": total / 1e6,
        "trainable_millions": (total - vision) / 1e6,
    }


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_count_in_full_and_weigh_less(bits, loaded):
    whole = loaded("blip", "vqa", load_processor=False)["model"]
    few = loaded("blip", "vqa", load_processor=False, **{f"load_in_{bits}bit": True})["model"]
    assert count_parameters(few)["total"] == count_parameters(whole)["total"]
    difference = compare_models(whole, few)
    assert difference["parameter_diff"] == 0 and difference["same_class"]
    assert difference["size_diff_mb"] == get_model_size_mb(few) - get_model_size_mb(whole) < 0
    assert get_model_info(few)["quantised_modules"] > 0 == get_model_info(whole)["quantised_modules"]


def test_info_says_what_a_model_is():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).half()).eval()
    freeze_model(model, ["1"])
    assert get_model_info(model) == {
        "model_class": "Sequential",
        "device": "cpu",
        "dtype": "float16, float32",
        "quantised_modules": 0,
        "size_mb": (8 * 4 + 3 * 2) / 2**20,
        "total_parameters": 11,
        "trainable_parameters": 8,
        "non_trainable_parameters": 3,
        "total_parameters_millions": 11e-6,
        "trainable_parameters_millions": 8e-6,
        "training": False,
    }


def test_a_summary_has_a_row_for_each_part_and_in_detail_each_tensor_that_learns(loaded, capsys):
    model = loaded("blip", "image_text_retrieval")["model"]
    freeze_model(model)
    unfreeze_model(model, ["itm_head"])
    print_model_summary(model)
    short = capsys.readouterr().out
    parts = {line.split("│")[1].strip() for line in short.splitlines() if line.startswith("│")}
    assert parts == {name for name, _ in model.named_children()}
    assert "itm_head.weight" not in short
    print_model_summary(model, detailed=True)
    long = capsys.readouterr().out
    tensors = [line.split("│")[1].strip() for line in long.splitlines() if line.startswith("│")][len(parts) :]
    assert tensors == ["itm_head.weight", "itm_head.bias"]


def test_two_models_side_by_side():
    a, b = nn.Linear(4, 4), nn.Linear(4, 8)
    assert compare_models(a, b) == {
        "parameter_diff": 20,
        "size_diff_mb": 20 * 4 / 2**20,
        "same_class": True,
    }
    assert not compare_models(a, nn.Sequential(b))["same_class"]


def test_names_of_layers_are_whole_segments(loaded):
    """'encoder' is inside of three parts of BLIP, and freezes none of them by accident."""
    model = loaded("blip", "vqa")["model"]
    for change in (freeze_model, unfreeze_model):
        with pytest.raises(ValueError, match="lies under 'encoder'") as caught:
            change(model, ["encoder"])
    assert "Near: vision_model.encoder, text_encoder.encoder" in str(caught.value)
    assert all(p.requires_grad for p in model.parameters())
    freeze_model(model, ["text_encoder.encoder"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("text_encoder.encoder.")}
    with pytest.raises(ValueError, match="lies under 'vision_modle'.*Near: vision_model"):
        freeze_model(model, ["vision_modle"])


def test_the_public_names_are_there():
    from quicksviewer import zoo

    assert all(hasattr(zoo, name) for name in zoo.__all__)
    assert zoo.freeze_model is freeze_model
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        zoo.nothing  # noqa: B018
    assert torch.device("cpu") == zoo.get_device(nn.Linear(1, 1))
