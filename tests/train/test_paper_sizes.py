"""The 7B recipe on the meta device: what learns in each stage is what the paper says."""

import pytest
import torch
from transformers import Qwen2Config

from quicksviewer.model.config import MultimodalConfig
from quicksviewer.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.train.args import read_recipe
from quicksviewer.train.stages import trainable_prefixes
from quicksviewer.utils.modules import count_parameters, parts_report, train_only

QWEN2_5_7B = dict(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
)
SO400M = dict(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=384,
    patch_size=14,
)


@pytest.fixture(scope="module")
def model():
    _, mm = read_recipe("7b", "stage1")
    values = {
        **mm,
        "tower": {**mm["tower"], "kind": "siglip", "hf": SO400M},
        "first_special_id": 151665,
        "time_token_ids": list(range(15, 26)),
    }
    config = LlavaQwenConfig(**Qwen2Config(**QWEN2_5_7B).to_dict())
    config.mm = MultimodalConfig.from_dict(values).to_dict()
    with torch.device("meta"):
        return LlavaQwenForCausalLM(config)


def test_stage_1_trains_75_million(model):
    train_only(model, trainable_prefixes(model, "stage1"))
    rows = {row.part: row.trainable for row in parts_report(model, PARTS)}
    assert rows["vision_tower"] == rows["llm"] == 0
    assert rows["resampler"] == 68_619_264
    # The published cubing and thumbnail have 6,793,474; the energies that its gate lacks add 4 x 1152 + 1.
    assert rows["cubing"] == 6_793_474 + 4 * 1152 + 1
    assert rows["special_tokens"] == 10 * 3584
    assert round((rows["resampler"] + rows["cubing"]) / 1e6, 1) == 75.4


def test_stage_2_trains_about_500_million(model):
    train_only(model, trainable_prefixes(model, "stage2"))
    assert 480e6 < count_parameters(model, trainable_only=True) < 510e6


def test_stage_3_trains_about_8_billion(model):
    train_only(model, trainable_prefixes(model, "stage3"))
    assert 7.9e9 < count_parameters(model, trainable_only=True) < 8.3e9
    assert count_parameters(model, trainable_only=True) == count_parameters(model)
