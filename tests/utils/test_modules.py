"""Tools for any module: counts, what learns, where it lies - tied, sharded and quantised ones included."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from quicksviewer.utils.modules import (
    PartRow,
    count_parameters,
    freeze_model,
    get_device,
    get_model_size_mb,
    keep_4bit_layout,
    move_model_to_device,
    parts_report,
    quantised_modules,
    train_only,
    unfreeze_model,
)


class Small(nn.Module):
    """Two layers whose names share a beginning, a tied head, a buffer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 4)
        self.layer_norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.zeros(8))


EMBED, LAYER, NORM = 20, 20, 8


@pytest.fixture
def model():
    return Small()


def trainable(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_shared_parameter_counts_once(model):
    assert count_parameters(model) == EMBED + LAYER + NORM
    freeze_model(model, ["layer"])
    assert count_parameters(model, trainable_only=True) == EMBED + NORM


def test_size_is_that_of_parameters_and_buffers(model):
    floats = EMBED + LAYER + NORM + 8
    assert get_model_size_mb(model) == floats * 4 / 2**20
    assert get_model_size_mb(model.to(torch.bfloat16)) == floats * 2 / 2**20


def test_a_sharded_module_has_its_whole_size(model):
    whole = count_parameters(model), get_model_size_mb(model)
    for p in model.parameters():
        p.ds_numel = p.numel()
        p.data = torch.empty(0)
    assert (count_parameters(model), get_model_size_mb(model)) == whole
    assert parts_report(model, {"all": ("embed", "layer", "layer_norm")})[0].parameters == whole[0]


def test_a_packed_parameter_counts_its_numbers_and_weighs_its_bytes():
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    layer.weight.quant_state = SimpleNamespace(shape=(4, 4))
    assert count_parameters(layer) == 16
    assert get_model_size_mb(layer) == 8 / 2**20
    with pytest.raises(ValueError, match="weight is quantised"):
        unfreeze_model(layer)


def test_packed_modules_are_found_and_keep_their_layout():
    layers = pytest.importorskip("bitsandbytes").nn
    model = nn.Sequential(nn.Linear(4, 4), layers.Linear4bit(4, 4), nn.Sequential(layers.Linear8bitLt(4, 4)))
    assert quantised_modules(model) == ["1", "2.0"]
    model[1].support_avx512bf16_for_cpu = True
    keep_4bit_layout(model)
    assert model[1].support_avx512bf16_for_cpu is False


def test_freeze_and_unfreeze_are_inverse_and_give_the_model(model):
    assert freeze_model(model) is model
    assert trainable(model) == set()
    assert unfreeze_model(model) is model
    assert trainable(model) == {name for name, _ in model.named_parameters()}


def test_a_prefix_ends_at_a_dot(model):
    train_only(model, ["layer"])
    assert trainable(model) == {"layer.weight", "layer.bias"}
    train_only(model, ["layer_norm.weight"])
    assert trainable(model) == {"layer_norm.weight"}
    train_only(model, [])
    assert trainable(model) == set()


def test_a_tied_parameter_is_found_under_both_names(model):
    train_only(model, ["head"])
    assert trainable(model) == {"embed.weight"}
    train_only(model, ["embed"])
    assert trainable(model) == {"embed.weight"}


@pytest.mark.parametrize("change", [freeze_model, unfreeze_model, train_only])
def test_a_prefix_that_matches_nothing_is_an_error(model, change):
    with pytest.raises(ValueError, match="no parameter of Small lies under 'lay'. It has: embed, layer"):
        change(model, ["layer", "lay"])


def test_the_error_names_what_is_called_alike_further_inside():
    model = nn.ModuleDict({"tower": nn.ModuleDict({"encoder": nn.Linear(2, 2)}), "writer": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"It has: tower, writer\. Near: tower\.encoder"):
        freeze_model(model, ["encoder"])
    with pytest.raises(ValueError, match=r"It has: tower, writer\. Near: writer"):
        freeze_model(model, ["writr"])
    assert all(p.requires_grad for p in model.parameters())


def test_text_is_no_list_of_prefixes(model):
    with pytest.raises(ValueError, match="expected a list of prefixes"):
        train_only(model, "layer")


def test_the_report_covers_every_parameter_once(model):
    train_only(model, ["layer"])
    rows = parts_report(model, {"text": ("embed", "head"), "body": ("layer",), "empty": ("nothing",)})
    assert rows == [
        PartRow("text", EMBED, 0, 1),
        PartRow("body", LAYER, LAYER, 2),
        PartRow("empty", 0, 0, 0),
        PartRow("other", NORM, 0, 2),
    ]
    assert sum(row.parameters for row in rows) == count_parameters(model)


def test_the_device_is_that_of_the_first_tensor_with_contents(model):
    assert get_device(model) == torch.device("cpu")
    assert get_device(nn.Identity()) == torch.device("cpu")
    assert get_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    mixed = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    assert get_device(mixed) == torch.device("cpu")


def test_moving(model):
    assert get_device(move_model_to_device(model, "meta")) == torch.device("meta")


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        (lambda m: setattr(m, "is_quantized", True), "is quantised"),
        (lambda m: setattr(m, "hf_device_map", {"embed": 0, "head": "cpu"}), "is spread over devices"),
        (lambda m: setattr(m.embed.weight, "ds_numel", 20), "is sharded"),
    ],
)
def test_a_model_that_must_not_move_says_why(model, mark, reason):
    mark(model)
    assert move_model_to_device(model, "cpu") is model
    with pytest.raises(ValueError, match=f"Small stays on cpu: it {reason}"):
        move_model_to_device(model, "meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(model):
    with pytest.raises(ValueError, match="cuda:0 was asked for"):
        move_model_to_device(model, "cuda:0")
