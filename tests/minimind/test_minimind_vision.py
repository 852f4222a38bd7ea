"""MiniMindVLM: towers of any size, pictures in the place of their runs and nowhere else, folders."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from quicksviewer.minimind import (
    MiniMindVLM,
    VisionEncoder,
    VLLMconfig,
    diagnose_model_issues,
    llmconfig,
    preset,
)
from quicksviewer.synthetic.tiny import make_tower

TOWERS = {
    "clip, 9 patches": ("clip", 9, dict(hidden_size=32, image_size=48, patch_size=16)),
    "siglip, 16 patches": ("siglip", 16, dict(hidden_size=48, image_size=32, patch_size=8)),
    "clip, 4 patches": ("clip", 4, dict(hidden_size=24, image_size=28, patch_size=14)),
}
"""Name -> kind, patches of a picture, shape."""
START = 7
"""Text before the picture."""


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    for name, (kind, _, shape) in TOWERS.items():
        make_tower(
            root / name, kind, **shape, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1
        )
    return root


def model_of(towers, name: str, **changes) -> MiniMindVLM:
    torch.manual_seed(0)
    config = preset("debug", initializer_range=0.2, **changes)
    return MiniMindVLM(config, str(towers / name)).eval()


@pytest.fixture(params=TOWERS)
def name(request):
    return request.param


@pytest.fixture
def model(towers, name):
    return model_of(towers, name)


def asked(model, rows: int = 1, pictures: int = 1):
    """ids with the runs of so many pictures in every row, and pixels (B, N, 3, S, S)."""
    side = model.vision_encoder.config.image_size
    text = torch.arange(40, 40 + START).tolist()
    row = text + (model.params.image_ids + [200]) * pictures + [201]
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([row] * rows), torch.randn(rows, pictures, 3, side, side, generator=generator)


def picture(shade: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((50, 40), shade).convert(mode)


# --- towers ---


def test_the_placeholder_follows_the_tower(model, name):
    kind, patches, shape = TOWERS[name]
    assert len(model.params.image_ids) == len(model.params.image_special_token) == patches
    assert model.params.ve_hidden_size == shape["hidden_size"]
    assert model.vision_proj.vision_proj.in_features == shape["hidden_size"]
    assert not any(p.requires_grad for p in model.vision_encoder.parameters())
    assert not model.train().vision_encoder.training
    seen = model.get_image_embeddings(asked(model, 2)[1], model.vision_encoder)
    assert seen.shape == (2, patches, shape["hidden_size"]) and not seen.requires_grad


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_pictures_of_any_mode_become_pixels(model, name, mode):
    side = TOWERS[name][2]["image_size"]
    pixels = model.image2tensor(picture(60, mode), model.processor)
    assert pixels.shape == (1, 3, side, side) and pixels.isfinite().all()


@torch.no_grad()
def test_a_picture_stands_where_its_run_is(model, name):
    """The embeddings are those of the words, and in the run the projected patches."""
    ids, pixels = asked(model)
    patches = TOWERS[name][1]
    made = model.embed_pictures(ids, pixels)[0]
    words = model.get_input_embeddings()(ids)[0]
    run = slice(START, START + patches)
    seen = model.vision_proj(model.get_image_embeddings(pixels, model.vision_encoder))[0]
    assert torch.equal(made[run], seen)
    assert torch.equal(
        torch.cat([made[:START], made[run.stop :]]), torch.cat([words[:START], words[run.stop :]])
    )


@torch.no_grad()
def test_pixels_may_lie_by_row_or_in_a_list(model):
    ids, pixels = asked(model, rows=2, pictures=2)
    expected = model(ids, pixels).logits
    for form in (pixels[:, :, None], pixels.flatten(0, 1)):
        assert torch.equal(model(ids, form).logits, expected)
    swapped = model(ids, pixels.flip(1)).logits
    assert torch.equal(swapped[:, :START], expected[:, :START]) and not torch.equal(swapped, expected)


@torch.no_grad()
def test_rows_may_hold_different_numbers_of_pictures(model):
    (one, pixels), (two, more) = asked(model), asked(model, pictures=2)
    gap = two.shape[1] - one.shape[1]
    ids = torch.cat([torch.cat([one, torch.full((1, gap), 2)], dim=1), two])
    mask = torch.ones_like(ids)
    mask[0, one.shape[1] :] = 0
    together = model(ids, torch.cat([pixels[0], more[0]]), attention_mask=mask).logits
    torch.testing.assert_close(
        together[0, : one.shape[1]], model(one, pixels).logits[0], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(together[1], model(two, more).logits[0], rtol=1e-4, atol=1e-5)


def test_the_projector_learns_and_the_tower_does_not(model):
    ids, pixels = asked(model)
    model.train()(ids, pixels, labels=ids).loss.backward()
    assert model.vision_proj.vision_proj.weight.grad.any()
    assert all(p.grad is None for p in model.vision_encoder.parameters())
    assert any("vision_proj" in name for name, _ in VisionEncoder(4, 6).named_parameters())


# --- what does not fit ---


def shorter(model, ids, pixels):
    return torch.cat([ids[:, :START], ids[:, START + 1 :]], dim=1), pixels


MISMATCH = {
    "no run": lambda model, ids, pixels: (ids.masked_fill(ids == model.params.image_ids[0], 50), pixels),
    "a run that is cut": shorter,
    "a run too many": lambda model, ids, pixels: (torch.cat([ids, ids], dim=1), pixels),
    "a picture too many": lambda model, ids, pixels: (ids, pixels.repeat(1, 2, 1, 1, 1)),
}


@pytest.mark.parametrize("case", MISMATCH)
def test_runs_that_do_not_match_the_pictures_are_refused(towers, case, capsys):
    model = model_of(towers, "clip, 9 patches")
    ids, pixels = MISMATCH[case](model, *asked(model))
    with pytest.raises(ValueError, match="pictures, each a run of 9 placeholders"):
        model(ids, pixels)
    problems = diagnose_model_issues(model, {"input_ids": ids, "pixel_values": pixels})
    assert any("vision: the text does not fit the pictures" in problem for problem in problems)
    assert any("forward fails: ValueError" in problem for problem in problems)
    capsys.readouterr()
    ids, pixels = asked(model)
    assert diagnose_model_issues(model, {"input_ids": ids, "pixel_values": pixels}) == []


def test_pictures_in_the_wrong_rows_are_refused(towers):
    """Two in one row and none in the other are as many as one in each."""
    model = model_of(towers, "clip, 4 patches")
    both, pixels = asked(model, pictures=2)
    none = torch.full_like(both, 50)
    with pytest.raises(ValueError, match="the text has runs of"):
        model(torch.cat([both, none]), pixels.transpose(0, 1))


def test_other_wrong_pixels_are_refused(towers):
    model, blind = model_of(towers, "clip, 4 patches"), MiniMindVLM(preset("debug"), None)
    ids, pixels = asked(model)
    with pytest.raises(ValueError, match="no vision tower"):
        blind(ids, pixels)
    with pytest.raises(ValueError, match=r"\(B, N, 3, S, S\) or \(M, 3, S, S\)"):
        model(ids, pixels[0, 0])
    with pytest.raises(ValueError, match="pixel_values need input_ids"):
        model(pixel_values=pixels, inputs_embeds=torch.zeros(1, 3, 64))
    with pytest.raises(ValueError, match="generate repeats pictures"):
        model.generate(ids, pixel_values=pixels[0, 0].expand(2, -1, -1, -1))


def test_a_run_of_another_length_than_the_tower_is_refused(towers):
    with pytest.raises(ValueError, match="image_ids has 5 ids, the vision tower gives 9"):
        model_of(towers, "clip, 9 patches", image_ids=[34] * 5, image_special_token="@" * 5)


def test_a_tower_that_is_not_there_leaves_text(tmp_path, caplog):
    model = MiniMindVLM(preset("debug"), str(tmp_path / "nowhere"))
    assert model.vision_encoder is None and model.processor is None and "text alone" in caplog.text
    assert model(torch.tensor([[5, 6]])).logits.shape == (1, 2, 260)
    assert MiniMindVLM.get_vision_model(str(tmp_path / "nowhere")) == (None, None)
    with pytest.raises(ValueError, match="holds no vision model"):
        MiniMindVLM.get_vision_model(str(tmp_path))


# --- generation and folders ---


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_about_a_picture_is_the_same_with_and_without_a_cache(towers, beams):
    model = model_of(towers, "siglip, 16 patches")
    ids, pixels = asked(model, rows=2)
    pixels[1] += 1
    ask = dict(max_new_tokens=5, do_sample=False, num_beams=beams, eos_token_id=None, pad_token_id=2)
    cached = model.generate(ids, pixel_values=pixels, **ask)
    for row in range(2):
        alone = model.generate(ids[row : row + 1], pixel_values=pixels[row : row + 1], **ask)
        assert torch.equal(cached[row], alone[0])
    assert model.params.image_ids[0] not in cached[:, ids.shape[1] :]
    if beams == 1:
        for _ in range(5):
            logits = model(ids, pixels).logits[:, -1]
            logits[:, model.params.image_ids[0]] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1)[:, None]], dim=1)
        assert torch.equal(cached, ids)


@torch.no_grad()
def test_a_saved_model_sees_the_same(model, tmp_path):
    ids, pixels = asked(model)
    model.save_pretrained(tmp_path)
    expected = model(ids, pixels).logits
    for kind in (MiniMindVLM, AutoModelForImageTextToText):
        again = kind.from_pretrained(tmp_path)
        assert type(again) is MiniMindVLM and again.lm_head.weight is again.model.embed_tokens.weight
        assert torch.equal(again.eval()(ids, pixels).logits, expected)
        assert not any(p.requires_grad for p in again.vision_encoder.parameters())
        image = picture(60)
        assert torch.equal(
            again.image2tensor(image, again.processor), model.image2tensor(image, model.processor)
        )


def test_another_tower_must_have_the_patches_of_the_first(towers):
    model = model_of(towers, "clip, 9 patches")
    with pytest.raises(ValueError, match="image_ids has 9 ids, the vision tower gives 4"):
        model.load_vision_model(str(towers / "clip, 4 patches"))


def test_a_configuration_of_the_users_own_is_taken_over():
    class Mine(llmconfig):
        pass

    assert VLLMconfig.of(Mine(hidden_size=48, vocab_size=99)).vocab_size == 99
    assert VLLMconfig.of(None).vocab_size == VLLMconfig().vocab_size
