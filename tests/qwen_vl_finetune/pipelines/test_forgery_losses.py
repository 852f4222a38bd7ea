"""What the losses count and what they leave out; heads and fusion keep what they are told."""

import pytest
import torch
import torch.nn.functional as F

from quicksviewer.qwen_vl_finetune.pipelines.fusion import FusionConfig, FusionProjector
from quicksviewer.qwen_vl_finetune.pipelines.heads import (
    ForensicHeads,
    GeneralisedMean,
    HeadOutput,
    HeadsConfig,
)
from quicksviewer.qwen_vl_finetune.pipelines.losses import LossWeights, Targets, head_losses, weighted_sum
from quicksviewer.qwen_vl_finetune.pipelines.weights import load_module, save_module

SIZE = 16


def case(labels=(1, 0), known=(True, True), inside_rows=SIZE):
    pictures = len(labels)
    mask = torch.zeros(pictures, SIZE, SIZE, dtype=torch.uint8)
    mask[0, :4, :4] = 1
    inside = torch.zeros(pictures, SIZE, SIZE, dtype=torch.bool)
    inside[:, :inside_rows] = True
    targets = Targets(torch.tensor(labels), mask, inside, torch.tensor(known))
    output = HeadOutput(torch.randn(pictures), torch.randn(pictures, 4, 4), torch.randn(pictures, 8))
    return output, targets


def test_the_letterbox_has_no_part_in_any_loss():
    output, targets = case(inside_rows=8)
    before = head_losses(output, targets, 0.5)
    changed = output.heat_logits_BHW.clone()
    changed[:, 3:] += 5  # upscaled by two, the last row of patches reaches no cell of the upper half
    mask = targets.mask_BSS.clone()
    mask[:, 8:] = 1
    after = head_losses(output._replace(heat_logits_BHW=changed), targets._replace(mask_BSS=mask), 0.5)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_fake_without_a_mask_teaches_the_class_alone():
    output, targets = case(labels=(1, 1), known=(True, False))
    heat = output.heat_logits_BHW.clone().requires_grad_(True)
    losses = head_losses(output._replace(heat_logits_BHW=heat), targets, 0.5)
    losses["evi"].backward()
    assert heat.grad[0].abs().sum() > 0 and heat.grad[1].abs().sum() == 0
    expected = F.binary_cross_entropy_with_logits(output.class_logit_B, torch.ones(2))
    assert torch.equal(losses["cls"], expected)
    assert losses["contrast"] == 0, "one class in the batch has no contrast"


def test_nothing_known_is_a_loss_of_zero_with_a_gradient():
    output, targets = case(labels=(1, 1), known=(False, False))
    heat = output.heat_logits_BHW.clone().requires_grad_(True)
    loss = head_losses(output._replace(heat_logits_BHW=heat), targets, 0.5)["evi"]
    loss.backward()
    assert loss == 0 and heat.grad.abs().sum() == 0


def test_a_perfect_map_costs_nothing_and_an_inverted_one_a_lot():
    output, targets = case()
    truth = F.adaptive_avg_pool2d(targets.mask_BSS.float(), 4)
    loss = {
        sign: head_losses(output._replace(heat_logits_BHW=sign * (truth * 2 - 1) * 20), targets, 0.0)["evi"]
        for sign in (1, -1)
    }
    assert loss[1] < 0.35 and loss[-1] > 0.5  # upsampling blurs the edge


def test_the_sum_is_weighted_by_the_seeds_names():
    losses = {name: torch.tensor(1.0) for name in ("lm", "cls", "evi", "sparse", "contrast")}
    assert weighted_sum(losses, LossWeights()).item() == pytest.approx(1 + 1 + 2 + 0.001 + 0.01)
    with pytest.raises(ValueError, match="head_evi must not be negative"):
        LossWeights(head_evi=-1)


def test_generalised_mean_lies_between_mean_and_maximum():
    pool, values = GeneralisedMean(), torch.rand(2, 3, 4, 4) + 0.1
    with torch.no_grad():
        pool.p.fill_(1.0)
        torch.testing.assert_close(pool(values), values.mean(dim=(2, 3)))
        pool.p.fill_(60.0)
        torch.testing.assert_close(pool(values), values.amax(dim=(2, 3)), rtol=0.06, atol=0)


def test_heads_and_fusion_come_back_as_they_were_saved(tmp_path):
    heads = ForensicHeads(HeadsConfig(levels=2, tower_width=8, fused_width=8, hidden_width=4))
    fusion = FusionProjector(FusionConfig(pooled_width=8, model_width=16, bottleneck=4))
    save_module(tmp_path / "heads.safetensors", heads)
    save_module(tmp_path / "fusion.safetensors", fusion)
    again = load_module(tmp_path / "heads.safetensors", ForensicHeads, HeadsConfig)
    maps = torch.randn(3, 2, 8, 4, 6)
    seen = heads(maps)
    assert all(torch.equal(a, b) for a, b in zip(seen, again(maps), strict=True))
    other = load_module(tmp_path / "fusion.safetensors", FusionProjector, FusionConfig)
    assert torch.equal(fusion.eval()(seen), other.eval()(seen)) and other(seen).shape == (3, 4, 16)
    with pytest.raises(ValueError, match="holds FusionProjector, expected ForensicHeads"):
        load_module(tmp_path / "fusion.safetensors", ForensicHeads, HeadsConfig)
    with pytest.raises(ValueError, match="pickled ones are never opened"):
        load_module(tmp_path / "task3_heads.pt", ForensicHeads, HeadsConfig)
    (tmp_path / "heads.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="is damaged"):
        load_module(tmp_path / "heads.safetensors", ForensicHeads, HeadsConfig)
