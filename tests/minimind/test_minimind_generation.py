"""transformers' generation runs on MiniMind as on its own models: every way writes what a plain loop does."""

import pytest
import torch

from quicksviewer.minimind import MiniMindForCausalLM, llmconfig, preset

NEW = 8
GREEDY = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=2)


@pytest.fixture
def helper(model):
    """A smaller model of the same words."""
    torch.manual_seed(1)
    return MiniMindForCausalLM(preset("debug", llmconfig, num_hidden_layers=1, initializer_range=0.2)).eval()


@torch.no_grad()
def by_hand(model, ids):
    """The likeliest token, again and again, without a cache."""
    for _ in range(NEW):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


SAME = {
    "without a cache": dict(use_cache=False),
    "cache dynamic": dict(cache_implementation="dynamic"),
    "cache static": dict(cache_implementation="static", disable_compile=True),
    "one beam": dict(num_beams=1),
    "top_k 1": dict(do_sample=True, top_k=1),
    "prefill in chunks": dict(prefill_chunk_size=5),
}


@pytest.mark.parametrize("name", SAME)
def test_ways_of_greedy_decoding_agree(model, ids, name):
    assert torch.equal(model.generate(ids, **GREEDY | SAME[name]), by_hand(model, ids))


def test_padding_on_the_left_changes_nothing(model, ids):
    short = ids[:1, 4:]
    block = torch.cat([torch.full((1, 4), 2), short], dim=1)
    rows, mask = torch.cat([ids[1:], block]), torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    found = model.generate(rows, attention_mask=mask, **GREEDY)
    assert torch.equal(found[1:, 4:], model.generate(short, **GREEDY))
    assert torch.equal(found[:1], model.generate(ids[1:], **GREEDY))


def test_assisted_decoding_writes_what_greedy_does(model, helper, ids):
    plain = model.generate(ids[:1], **GREEDY)
    assert torch.equal(model.generate(ids[:1], assistant_model=helper, **GREEDY), plain)
    assert torch.equal(model.generate(ids[:1], prompt_lookup_num_tokens=3, **GREEDY), plain)


def test_beams_find_likelier_texts(model, ids):
    """Texts as likely as their scores say, and here none less likely than the greedy one."""
    ask = dict(return_dict_in_generate=True, output_scores=True)
    out = model.generate(ids, num_beams=6, num_return_sequences=2, length_penalty=0.0, **GREEDY | ask)
    greedy = model.generate(ids, **GREEDY)

    def log_likelihood(rows):
        with torch.no_grad():
            logs = model(rows[:, :-1]).logits.log_softmax(-1)
        return logs.gather(2, rows[:, 1:, None])[:, -NEW:, 0].sum(1)

    torch.testing.assert_close(out.sequences_scores, log_likelihood(out.sequences), rtol=1e-4, atol=1e-4)
    best, other = out.sequences_scores.view(2, 2).T
    assert (best >= other).all() and (best >= log_likelihood(greedy) - 1e-4).all()


def test_sampling_is_repeatable_and_follows_the_probabilities(model, ids):
    def draw(seed, **how):
        torch.manual_seed(seed)
        return model.generate(ids, **GREEDY | dict(do_sample=True, top_k=0) | how)

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(draw(0, temperature=1e-4), by_hand(model, ids))
    with torch.no_grad():
        expected = model(ids[:1]).logits[0, -1].softmax(-1)
    torch.manual_seed(0)
    first = model.generate(
        ids[:1].expand(1000, -1), **GREEDY | dict(do_sample=True, top_k=0, max_new_tokens=1)
    )[:, -1]
    share = torch.bincount(first, minlength=260) / 1000
    assert (share - expected).abs().max() < 0.05


def test_scores_are_the_logits(model, ids):
    ask = dict(return_dict_in_generate=True, output_logits=True, output_hidden_states=True)
    out = model.generate(ids, **GREEDY | ask)
    with torch.no_grad():
        logits = model(out.sequences).logits[:, 11:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), logits, rtol=1e-4, atol=1e-4)
    assert len(out.hidden_states) == NEW and len(out.hidden_states[0]) == model.config.num_hidden_layers + 1


def test_an_ending_ends(model, ids):
    written = by_hand(model, ids[:1])[0, 12:].tolist()
    out = model.generate(ids[:1], **GREEDY | dict(eos_token_id=written[2]))
    assert out[0, 12:].tolist() == written[: written.index(written[2]) + 1]


def test_a_text_goes_on_from_a_cache(model, ids):
    with torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
    assert torch.equal(model.generate(ids, past_key_values=cache, **GREEDY), by_hand(model, ids))
