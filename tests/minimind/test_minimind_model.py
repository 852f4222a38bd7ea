"""The language model computes the same however it is asked: padded, cached, in batches, plainly or fused."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from quicksviewer.minimind import MiniMindForCausalLM, llmconfig, preset
from quicksviewer.minimind.functions import positions

CLOSE = dict(rtol=1e-4, atol=1e-5)


def padded(ids, many: int, side: str):
    """Rows with `many` places of padding on one side, and their mask."""
    block, ones = torch.full((len(ids), many), 2), torch.ones_like(ids)
    order = slice(None) if side == "right" else slice(None, None, -1)
    joined = torch.cat([ids, block][order], dim=1)
    return joined, torch.cat([ones, torch.zeros_like(block)][order], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(model, ids, side, attention):
    model.set_attn_implementation(attention)
    alone = model(ids).logits
    long, mask = padded(ids, 5, side)
    out = model(long, attention_mask=mask, position_ids=positions(mask)).logits
    torch.testing.assert_close(out[mask.bool()].view_as(alone), alone, **CLOSE)


@torch.no_grad()
def test_a_batch_gives_what_single_rows_give(model, ids):
    lengths = (12, 7)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    together = model(ids.masked_fill(~mask, 2), attention_mask=mask.long()).logits
    for row, length, logits in zip(ids, lengths, together, strict=True):
        torch.testing.assert_close(logits[:length], model(row[None, :length]).logits[0], **CLOSE)


@pytest.mark.parametrize("gaps", [False, True])
def test_fused_attention_is_the_plain_one(model, ids, gaps):
    """With gradients; `gaps`: padding in the second row."""
    mask = torch.ones_like(ids)
    mask[1, 8:] = 1 - gaps
    found = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        out = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
        out.loss.backward()
        found.append([out.logits[mask.bool()], *(p.grad.clone() for p in model.parameters())])
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, **CLOSE)


def test_plain_attention_shows_what_it_looks_at(model, ids):
    model.set_attn_implementation("eager")
    weights = torch.stack(model(ids, output_attentions=True).attentions)
    assert weights.shape == (2, 2, 4, 12, 12) and (weights.triu(1) == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4, 12))


def test_flash_attn_off_is_plain_attention():
    assert MiniMindForCausalLM(preset("debug", llmconfig)).config._attn_implementation == "sdpa"
    plain = MiniMindForCausalLM(preset("debug", llmconfig, flash_attn=False))
    assert plain.config._attn_implementation == "eager"


CACHES = {
    "the default": lambda config: None,
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=16),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("pieces", [(12,), (5, 7), (9, 1, 1, 1)])
def test_a_cache_changes_nothing(model, ids, name, pieces):
    whole = model(ids, use_cache=False)
    assert whole.past_key_values is None
    cache, found = CACHES[name](model.config), []
    for piece in ids.split(pieces, dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole.logits, **CLOSE)


@torch.no_grad()
def test_a_future_token_changes_no_past_one(model, ids):
    other = ids.clone()
    other[:, 7:] = 5
    torch.testing.assert_close(model(other).logits[:, :7], model(ids).logits[:, :7], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("keep", "places"), [(3, slice(-3, None)), (0, slice(None)), (torch.tensor([1]), [1])]
)
def test_only_the_logits_that_are_asked_for(model, ids, keep, places):
    torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, model(ids).logits[:, places], **CLOSE)


def test_the_loss_is_that_of_the_next_tokens_that_are_targets(model, ids):
    labels = ids.masked_fill(torch.arange(12) < 4, -100)
    out = model(ids, labels=labels)
    expected = F.cross_entropy(out.logits[:, 3:-1].flatten(0, 1), ids[:, 4:].flatten())
    torch.testing.assert_close(out.loss, expected)
    halved = model(ids, labels=labels, num_items_in_batch=32).loss  # 16 targets
    torch.testing.assert_close(halved, expected / 2)


def test_rotations_depend_on_distances_alone(model, ids):
    near = model(ids, position_ids=torch.arange(12)[None]).logits
    far = model(ids, position_ids=torch.arange(100, 112)[None]).logits
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_the_same(kind, ids, tied, tmp_path):
    torch.manual_seed(3)
    config = preset("debug", llmconfig, tie_word_embeddings=tied, rope_theta=5e4, **kind)
    model = MiniMindForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    for again in (
        MiniMindForCausalLM.from_pretrained(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),
    ):
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
        assert torch.equal(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)


def test_recomputed_layers_have_the_same_gradients(model, ids):
    found = []
    for recompute in (False, True):
        model.train().zero_grad()
        if recompute:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_words_or_embeddings_not_both(model, ids):
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(ids).logits, **CLOSE)
    with pytest.raises(ValueError, match="one of them"):
        model(ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="one of them"):
        model()


@torch.no_grad()
def test_half_precision_stays_near(model, ids):
    exact = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids).logits.float()
    half = model.to(torch.bfloat16)(ids).logits.float()
    for rough in (mixed, half):
        # Of every token but the few that other experts were chosen for.
        assert F.cosine_similarity(rough, exact, dim=-1).median() > 0.999
