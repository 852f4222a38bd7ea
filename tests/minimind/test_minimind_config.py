"""What a configuration says of its model: parameters as in the published table, and what it refuses."""

import pytest
import torch

from quicksviewer.minimind import PRESETS, MiniMindForCausalLM, MiniMindVLM, VLLMconfig, llmconfig, preset

EXAMPLE = dict(
    vocab_size=100000,
    hidden_size=1024,
    num_attention_heads=16,
    num_key_value_heads=8,
    num_hidden_layers=24,
    use_moe=True,
    num_experts_per_token=2,
    n_routed_experts=16,
    n_shared_experts=2,
    max_position_embeddings=4096,
)
START = dict(vocab_size=50000, intermediate_size=3072)
TABLE = {
    "tiny": (PRESETS["tiny"], 512, 6_495_488, 6_495_488, 196_864),
    "small": (PRESETS["small"], 3072, 136_305_408, 136_305_408, 590_592),
    "medium": (PRESETS["medium"], 4096, 428_737_536, 428_737_536, 787_456),
    "large_moe": (PRESETS["large_moe"], 4096, 11_252_614_656, 2_796_897_792, 1_181_184),
    "example of experts": (EXAMPLE, 2752, 3_830_531_072, 989_938_688, 787_456),
    "quick start": (START, 3072, 151_665_408, 151_665_408, 590_592),
}
"""Name -> settings, width of a feed-forward layer, parameters, of which a token meets, of the projector."""


@pytest.mark.parametrize("name", TABLE)
def test_parameters_are_those_of_the_table(name):
    settings, width, total, active, projector = TABLE[name]
    config = VLLMconfig(**settings)
    assert config.intermediate_size == width
    assert config.num_params() == total and config.num_active_params() == active
    assert config.num_projector_params() == projector
    with torch.device("meta"):
        model = MiniMindVLM(config, None)
    assert model.num_parameters() == total + projector


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_preset_counts_what_is_built(name, tied):
    config = preset(name, llmconfig, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = MiniMindForCausalLM(config)
    assert config.num_params() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shared", [0, 3])
def test_a_token_meets_its_experts_the_shared_ones_and_all_else(shared):
    config = preset(
        "debug", use_moe=True, n_routed_experts=8, num_experts_per_token=3, n_shared_experts=shared
    )
    idle = config.num_hidden_layers * 5 * 3 * config.hidden_size * config.intermediate_size
    assert config.num_active_params() == config.num_params() - idle


REFUSED = {
    "hidden_size": (dict(hidden_size=100, num_attention_heads=3), "must be a multiple of 2 x 3"),
    "heads": (dict(num_attention_heads=4, num_key_value_heads=3), "3 key/value heads do not divide 4"),
    "act": (dict(hidden_act="slu"), "unknown activation .* 'slu'"),
    "experts": (dict(use_moe=True, num_experts_per_token=3), "between 1 and n_routed_experts 2"),
    "dropout": (dict(dropout=1.0), r"dropout lies in \[0, 1\)"),
    "alpha": (dict(aux_loss_alpha=-1), "aux_loss_alpha is not negative"),
    "layers": (dict(num_hidden_layers=0), "num_hidden_layers is at least 1"),
    "ids": (dict(image_ids=[3, 4]), "must repeat one id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nonsense_is_refused(name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        VLLMconfig(**changes)


def test_a_saved_configuration_is_the_same(tmp_path):
    config = preset("large_moe", rope_theta=5e5, image_ids=[7] * 9, image_special_token="#" * 9)
    config.save_pretrained(tmp_path)
    again = VLLMconfig.from_pretrained(tmp_path)
    for name in ("n_shared_experts", "rope_theta", "image_ids", "image_special_token", "intermediate_size"):
        assert getattr(again, name) == getattr(config, name), name
    assert again.num_active_params() == config.num_active_params()


def test_an_unknown_preset_is_answered_with_the_near_one():
    with pytest.raises(ValueError, match="Did you mean 'small'"):
        preset("smal")
