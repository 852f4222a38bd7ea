"""Several documents in one row: `segment_ids` (B, T) int64, 0 is padding, equal numbers are one document.

Attention is causal within a document and never crosses its border; positions start anew in each; the last
token of a document predicts nothing. Two ways lead there: a mask of T x T, and attention to one document
after the other (`attend_by_document`), whose cost is that of the documents alone. Letters: B rows, T tokens.
"""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.utils.registry import lookup


def positions(segment_ids_BT: Tensor) -> Tensor:
    """Place of every token in its document, from 0: (B, T) int64."""
    order_BT = segment_ids_BT.argsort(dim=1, stable=True)
    sorted_BT = segment_ids_BT.gather(1, order_BT)
    place_T = torch.arange(segment_ids_BT.shape[1], device=segment_ids_BT.device)
    starts_BT = F.pad(sorted_BT[:, 1:] != sorted_BT[:, :-1], (1, 0), value=True)
    first_BT = torch.where(starts_BT, place_T, 0).cummax(dim=1).values
    return torch.empty_like(order_BT).scatter_(1, order_BT, place_T - first_BT)


def next_tokens(labels_BT: Tensor, segment_ids_BT: Tensor | None = None) -> Tensor:
    """What every token has to predict: the label of the next one, if that is of the same document: (B, T)."""
    shifted_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE_INDEX)
    if segment_ids_BT is None:
        return shifted_BT
    same_BT = F.pad(segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1], (0, 1), value=False)
    return shifted_BT.masked_fill(~same_BT, IGNORE_INDEX)


def causal_in_documents(segment_ids_BT: Tensor) -> Tensor:
    """Whether a token (third axis) may look at another (fourth): (B, 1, T, T). Padding looks at padding."""
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return same_BTT.tril()[:, None]


def _bool_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return allowed


def _additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


BY_DOCUMENT = "quicksviewer_documents"
"""Of our attention in transformers' interface."""
MASKS = {"sdpa": _bool_mask, "eager": _additive_mask, BY_DOCUMENT: _bool_mask}
"""Attention that honours a mask of four axes -> the form in which it wants it."""


def document_mask(segment_ids_BT: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """The mask of `causal_in_documents` as an attention of transformers takes it. ValueError for one that
    takes none."""
    form = lookup(MASKS, attention, "attention for rows of several documents")
    return form(causal_in_documents(segment_ids_BT), dtype)


def document_inputs(segment_ids_BT: Tensor, attention: str, dtype: torch.dtype) -> dict:
    """What a backbone needs so that no token looks across a border: a mask, or the documents and no mask."""
    if attention == BY_DOCUMENT and (runs := document_runs(segment_ids_BT)) is not None:
        # transformers would make a mask of its own from the positions; one of four axes it passes on as it is
        none = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=segment_ids_BT.device)
        return {"attention_mask": none, "documents": runs}
    return {"attention_mask": document_mask(segment_ids_BT, attention, dtype)}


def document_runs(segment_ids_BT: Tensor) -> list[list[int]] | None:
    """Lengths of the runs of equal numbers of every row, padding too; None where a document lies in pieces.

    Reads the numbers on the host, once a batch.
    """
    runs = []
    for segments in segment_ids_BT.tolist():
        row = [(number, sum(1 for _ in some)) for number, some in groupby(segments)]
        documents = [number for number, _ in row if number]
        if len(documents) > len(set(documents)):
            return None
        runs.append([length for _, length in row])
    return runs


def attend_by_document(config) -> None:
    """Let a language model with transformers' `sdpa` attend to one document of a row after the other.

    Rows without documents it reads as before. Other attentions stay as they are.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(BY_DOCUMENT, attention_by_document)
    AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)
    config._attn_implementation = BY_DOCUMENT


def attention_by_document(module, query, key, value, attention_mask, documents=None, **kwargs):
    """transformers' attention: query (B, H, T, D), key and value (B, G, T, D) -> (B, T, H, D).

    `documents`: lengths of the documents of every row; without them this is `sdpa`.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if documents is None:
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    rows = []
    for row, lengths in enumerate(documents):
        parts = zip(*(x[row : row + 1].split(lengths, dim=2) for x in (query, key, value)), strict=True)
        rows.append(torch.cat([sdpa(module, *part, None, **kwargs)[0] for part in parts], dim=1))
    return torch.cat(rows), None
