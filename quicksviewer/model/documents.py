"""Several documents in one row: `segment_ids` (B, T) int64, 0 is padding, equal numbers are one document.

Attention is causal within a document and never crosses its border; positions start anew in each; the last
token of a document predicts nothing. Letters: B rows, T tokens.
"""

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


MASKS = {"sdpa": _bool_mask, "eager": _additive_mask}
"""Attention of transformers that honours a mask of four axes -> the form in which it wants it."""


def document_mask(segment_ids_BT: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """The mask of `causal_in_documents` as an attention of transformers takes it. ValueError for one that
    takes none."""
    form = lookup(MASKS, attention, "attention for rows of several documents")
    return form(causal_in_documents(segment_ids_BT), dtype)
