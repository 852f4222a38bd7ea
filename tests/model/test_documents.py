"""Rows of several documents: the same numbers as one document at a time, and no look across a border."""

import pytest
import torch
from tiny_world import fresh, text_row, video_row, videos

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.model.documents import (
    BY_DOCUMENT,
    attend_by_document,
    causal_in_documents,
    document_inputs,
    document_mask,
    document_runs,
    next_tokens,
    positions,
)
from quicksviewer.utils.batching import batch_rows, join_media

SEGMENTS = torch.tensor([[3, 3, 3, 1, 1, 0], [5, 2, 2, 2, 2, 2]])


def packed(rows: list[dict]) -> dict:
    """Rows of the processor as one row of several documents, with three tokens of padding."""
    ids = [i for row in rows for i in [*row["input_ids"]]] + [0] * 3
    labels = [i for row in rows for i in [*row["labels"]]] + [IGNORE_INDEX] * 3
    segments = [n for n, row in enumerate(rows, start=1) for _ in row["input_ids"]] + [0] * 3
    batch = dict(input_ids=ids, labels=labels, segment_ids=segments)
    return {key: torch.tensor([values]) for key, values in batch.items()} | join_media(rows)


def test_positions_start_anew_in_every_document():
    assert positions(SEGMENTS).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]


def test_the_last_token_of_a_document_predicts_nothing():
    labels = torch.arange(12).view(2, 6)
    x = IGNORE_INDEX
    assert next_tokens(labels, SEGMENTS).tolist() == [[1, 2, x, 4, x, x], [x, 8, 9, 10, 11, x]]
    assert next_tokens(labels)[0].tolist() == [1, 2, 3, 4, 5, x]


def test_a_token_sees_earlier_tokens_of_its_document_alone():
    allowed = causal_in_documents(SEGMENTS)[:, 0]
    for row, segments in enumerate(SEGMENTS.tolist()):
        for q, k in [(q, k) for q in range(6) for k in range(6)]:
            assert allowed[row, q, k] == (k <= q and segments[q] == segments[k])


@pytest.mark.parametrize("attention", ["sdpa", "eager", BY_DOCUMENT])
def test_a_packed_row_gives_the_loss_and_gradients_of_its_documents(tiny, attention):
    loaded = fresh(tiny)
    model = loaded.model.train()
    attend_by_document(model.config)
    assert model.config._attn_implementation == BY_DOCUMENT
    model.config._attn_implementation = attention
    rows = [video_row(loaded, videos(tiny)[0]), text_row(loaded), video_row(loaded, videos(tiny)[1])]
    loss = model(**packed(rows), num_items_in_batch=7).loss
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    alone = [
        model(**batch_rows([row], 0), **join_media([row]), num_items_in_batch=7, use_cache=False).loss
        for row in rows
    ]
    sum(alone).backward()
    assert loss.item() == pytest.approx(sum(alone).item(), rel=1e-6)
    reference = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    # gradients of key biases are rounding errors around 0: they are held against the others' size
    largest = max(grad.abs().max().item() for grad in reference.values())
    assert ours.keys() == reference.keys()
    for name, grad in reference.items():
        scale = max(grad.abs().max().item(), 1e-3 * largest)
        assert (ours[name] - grad).abs().max().item() <= 3e-6 * scale, name


def test_other_documents_change_no_logit(tiny):
    loaded = fresh(tiny)
    batch = packed([text_row(loaded), text_row(loaded, "And then?", "blue")])
    model = loaded.model.eval()
    before = model(**batch).logits
    second = batch["segment_ids"] == 2
    changed = batch["input_ids"].clone()
    changed[~second] = 5
    after = model(**{**batch, "input_ids": changed}).logits
    assert torch.equal(before[second], after[second])
    assert not torch.equal(before[~second], after[~second])


def test_a_label_at_the_start_of_a_document_is_no_target(tiny):
    loaded = fresh(tiny)
    batch = packed([text_row(loaded), text_row(loaded)])
    loss = loaded.model(**batch).loss
    start = (batch["segment_ids"] == 2).int().argmax()
    batch["labels"][0, start] = 7
    assert torch.equal(loaded.model(**batch).loss, loss)


def test_documents_in_one_piece_need_no_mask():
    assert document_runs(SEGMENTS) == [[3, 2, 1], [1, 5]]
    inputs = document_inputs(SEGMENTS, BY_DOCUMENT, torch.float32)
    assert inputs["attention_mask"].numel() == 1 and inputs["documents"] == [[3, 2, 1], [1, 5]]


def test_a_document_in_pieces_is_read_through_a_mask():
    pieces = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])
    assert document_runs(pieces) is None
    inputs = document_inputs(pieces, BY_DOCUMENT, torch.float32)
    assert torch.equal(inputs.pop("attention_mask"), causal_in_documents(pieces)) and not inputs


def test_by_document_reads_and_writes_as_sdpa_where_there_are_no_documents(tiny):
    loaded = fresh(tiny)
    batch = batch_rows([text_row(loaded), text_row(loaded, "And what happens after that?", "blue")], 0)
    before = loaded.model.eval()(**batch).logits
    asked = {"input_ids": batch["input_ids"][:1], "max_new_tokens": 5, "do_sample": False}
    written = loaded.model.generate(**asked)
    attend_by_document(loaded.model.config)
    assert torch.equal(loaded.model(**batch).logits, before)
    assert torch.equal(loaded.model.generate(**asked), written)


def test_an_attention_without_masks_is_refused():
    with pytest.raises(ValueError, match="flash_attention_2.*eager.*sdpa"):
        document_mask(SEGMENTS, "flash_attention_2", torch.float32)
