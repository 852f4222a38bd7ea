"""The shipped configurations on the shape of Qwen2.5-VL-7B, on the meta device: what each task trains."""

import pytest
import torch

from quicksviewer.qwen_vl_finetune.lora import LoraSettings, attach
from quicksviewer.qwen_vl_finetune.pipelines import hybrid, lm_supervised, modular, steps
from quicksviewer.qwen_vl_finetune.pipelines.config import read
from quicksviewer.qwen_vl_finetune.pipelines.fusion import FusionConfig, FusionProjector
from quicksviewer.qwen_vl_finetune.pipelines.heads import ForensicHeads, HeadsConfig
from quicksviewer.qwen_vl_finetune.pipelines.settings import HybridTrain, LmTrain, ModularTrain
from quicksviewer.utils.modules import count_parameters

TOWER, MLP, LM, KEYS, RANK = 1280, 3420, 3584, 512, 8
"""Widths: the tower, its MLP, the language model, its keys and values; the adapters' rank."""
TEXT = dict(
    hidden_size=LM,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
)


def pair(inside: int, outside: int) -> int:
    """Numbers in the two matrices of an adapter."""
    return RANK * (inside + outside)


BLOCK = pair(TOWER, 3 * TOWER) + pair(TOWER, TOWER) + 2 * pair(TOWER, MLP) + pair(MLP, TOWER)
MERGER = pair(4 * TOWER, 4 * TOWER) + pair(4 * TOWER, LM)
QUERY_VALUE = pair(LM, LM) + pair(LM, KEYS)


@pytest.fixture
def seven_billion():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=dict(hidden_size=TOWER, out_hidden_size=LM))
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.requires_grad_(False)
    assert count_parameters(model) == 8_292_166_656
    return model


def shipped(kind, step):
    return read(kind, steps.shipped(step))


def learning(model, targets, dropout=0.05) -> int:
    with torch.device("meta"):
        adapted = attach(model, LoraSettings(r=RANK, alpha=16, dropout=dropout, targets=targets))
    return count_parameters(adapted, trainable_only=True)


def heads_7b() -> int:
    with torch.device("meta"):
        return count_parameters(ForensicHeads(HeadsConfig(levels=4, tower_width=TOWER)))


def test_task_1_adapts_all_blocks(seven_billion):
    config = shipped(ModularTrain, "modular-train")
    assert learning(seven_billion, modular.lora_settings(config).targets) == 32 * BLOCK
    fused, hidden, wide = 512, 256, 4 * 512
    fuser = 4 * (TOWER * fused + fused) + wide * 9 + wide + wide * fused + fused
    classifier = fused * hidden + hidden + hidden + 1
    heat = fused * hidden * 9 + hidden + hidden + 1
    assert heads_7b() == fuser + 1 + classifier + heat == 5_004_803


def test_task_2_adapts_four_blocks_and_the_merger(seven_billion):
    config = shipped(LmTrain, "lm-train")
    assert learning(seven_billion, lm_supervised.lora_targets(config)) == 4 * BLOCK + MERGER


def test_task_3_adapts_both_towers_and_fuses_through_a_bottleneck(seven_billion):
    config = shipped(HybridTrain, "hybrid-train")
    assert learning(seven_billion, hybrid.lora_targets(config.lora)) == 4 * BLOCK + MERGER + 4 * QUERY_VALUE
    shape = dict(pooled_width=512, model_width=LM, tokens=config.fusion_tokens)
    with torch.device("meta"):
        narrow = FusionProjector(FusionConfig(**shape, bottleneck=config.fusion_bottleneck))
        wide = FusionProjector(FusionConfig(**shape, bottleneck=4 * LM))
    assert count_parameters(narrow) == 516 * 256 + 256 + 256 * 4 * LM + 4 * LM + 2 * LM
    assert count_parameters(wide) > 50 * count_parameters(narrow) > 1e8
