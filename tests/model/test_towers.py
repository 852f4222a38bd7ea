"""Towers: pixels in, patch tokens out; chunks, grad mode, layers and loading."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, SiglipConfig, SiglipModel, SiglipVisionModel

from quicksviewer.model.config import TowerConfig
from quicksviewer.model.multimodal_encoder import TOWERS, build_tower

TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
}
WHOLE = {"siglip": (SiglipConfig, SiglipModel), "clip": (CLIPConfig, CLIPModel)}
ALONE = {"siglip": SiglipVisionModel, "clip": CLIPVisionModel}
EVERY = pytest.mark.parametrize("kind", sorted(TOWERS))


def make(kind, seed=0, **values):
    torch.manual_seed(seed)
    return build_tower(TowerConfig(kind=kind, hf=TINY, **values))


def pixels(num_frames=5, size=28):
    return torch.randint(
        0, 256, (num_frames, 3, size, size), generator=torch.Generator().manual_seed(0)
    ).byte()


@EVERY
def test_chunks_change_nothing(kind):
    whole, parts = make(kind, frames_per_chunk=100), make(kind, frames_per_chunk=2)
    expected = whole(pixels())
    assert expected.shape == (5, 49, 16) == (5, whole.num_patches, whole.hidden_size)
    torch.testing.assert_close(parts(pixels()), expected)
    torch.testing.assert_close(whole(pixels(), min_chunks=8), expected)


@EVERY
def test_a_call_runs_the_agreed_number_of_chunks(kind):
    tower, calls = make(kind, frames_per_chunk=2), []
    tower.vision.register_forward_hook(lambda *_: calls.append(1))
    tower(pixels(5))
    assert len(calls) == 3
    tower(pixels(1), min_chunks=4).sum().backward()
    assert len(calls) == 7


@EVERY
@pytest.mark.parametrize("values", [{}, {"post_layernorm": False}, {"select_layer": -2}, {"grid": 5}])
def test_a_graph_exactly_when_a_weight_is_trained(kind, values):
    tower = make(kind, **values)
    tower(pixels()).square().sum().backward()
    without = [name for name, p in tower.named_parameters() if p.grad is None]
    assert not without
    tower.requires_grad_(False)
    assert not tower(pixels()).requires_grad
    next(tower.parameters()).requires_grad_(True)
    assert tower(pixels()).requires_grad
    with torch.no_grad():
        assert not tower(pixels()).requires_grad


@EVERY
@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_the_selected_layer_is_the_last_that_is_built(kind, layer):
    tower = make(kind, select_layer=layer, post_layernorm=False)
    assert len(tower.vision.encoder.layers) == 4 + layer
    model = ALONE[kind](TowerConfig(kind=kind, hf=TINY).vision).eval()
    model.load_state_dict(tower.vision.state_dict(), strict=False)
    states = model(tower.normalise(pixels()), output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(pixels()), states[layer][:, -49:], atol=1e-5, rtol=1e-5)


@EVERY
def test_post_layernorm_is_applied_to_the_patches(kind):
    with_norm, without = make(kind), make(kind, post_layernorm=False)
    without.vision.load_state_dict(with_norm.vision.state_dict(), strict=False)
    norm = with_norm.vision.post_layernorm
    torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(with_norm(pixels()), norm(without(pixels())), atol=1e-5, rtol=1e-5)


def test_pixels_are_normalised_per_colour():
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 28, 28)
    values = make("siglip").normalise(black_and_white)
    torch.testing.assert_close(values[:, :, 0, 0], torch.tensor([[-1.0] * 3, [1.0] * 3]))
    clip = make("clip")
    mean, std = torch.tensor(clip.MEAN), torch.tensor(clip.STD)
    torch.testing.assert_close(clip.normalise(black_and_white)[1, :, 0, 0], (1 - mean) / std)
    assert clip.bfloat16().normalise(black_and_white).dtype == torch.bfloat16


@EVERY
def test_the_grid_is_resized_in_float32(kind):
    plain, resized = make(kind), make(kind, grid=5)
    image = plain(pixels()).transpose(1, 2).unflatten(2, (7, 7))
    expected = F.interpolate(image, size=(5, 5), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(resized(pixels()), expected)
    assert (resized.grid, resized.num_patches) == (5, 25)
    assert resized.bfloat16()(pixels()).dtype == torch.bfloat16


@EVERY
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "vision-only"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_weights_of_a_checkpoint(kind, whole, layer, tmp_path):
    torch.manual_seed(7)
    if whole:
        config_class, model_class = WHOLE[kind]
        saved = model_class(config_class(vision_config=TINY, text_config=TEXT))
        vision = saved.vision_model
    else:
        saved = vision = ALONE[kind](TowerConfig(kind=kind, hf=TINY).vision)
    saved.save_pretrained(tmp_path)
    tower = make(kind, select_layer=layer, post_layernorm=False)
    before = tower(pixels())
    tower.requires_grad_(False).train()
    tower.enable_gradient_checkpointing()
    tower.load_pretrained(tmp_path)
    states = vision.eval()(tower.normalise(pixels()), output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(pixels()), states[layer][:, -49:], atol=1e-5, rtol=1e-5)
    assert (before - tower(pixels())).abs().max() > 0.01
    assert not any(p.requires_grad for p in tower.parameters())
    assert tower.training and tower.vision.training
    assert all(layer.gradient_checkpointing for layer in tower.vision.encoder.layers)


def test_a_checkpoint_with_too_few_weights_is_refused(tmp_path):
    SiglipVisionModel(TowerConfig(hf={**TINY, "num_hidden_layers": 1}).vision).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks .* weights"):
        make("siglip").load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint folder"):
        make("siglip").load_pretrained(tmp_path / "absent")


@EVERY
def test_gradient_checkpointing_changes_nothing(kind):
    grads = []
    for checkpointing in (False, True):
        tower = make(kind).train()
        if checkpointing:
            tower.enable_gradient_checkpointing()
        tower(pixels()).square().sum().backward()
        grads.append({name: p.grad for name, p in tower.named_parameters()})
    for name in grads[0]:
        torch.testing.assert_close(*(g[name] for g in grads))


@pytest.mark.parametrize("bad", [pixels().float(), pixels(size=32), pixels()[0]])
def test_other_pixels_are_refused(bad):
    with pytest.raises(ValueError, match="uint8 pixels"):
        make("siglip")(bad)


@EVERY
def test_two_towers_do_not_share_a_config(kind):
    config = TowerConfig(kind=kind, hf=TINY)
    eager, sdpa = build_tower(config, "eager"), build_tower(config)
    assert eager.vision.config._attn_implementation == "eager"
    assert sdpa.vision.config._attn_implementation == "sdpa"
    sdpa.load_state_dict(eager.state_dict())
    torch.testing.assert_close(eager(pixels()), sdpa(pixels()), atol=1e-5, rtol=1e-5)
