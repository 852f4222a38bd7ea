"""Rows of different length become one tensor; media of all rows become one list. Nothing here knows what a
row means."""

import torch
from torch import Tensor


def pad_rows(rows: list[list[int]], fill: int, side: str = "right") -> Tensor:
    """Rows as one int64 tensor (B, longest), filled up on one side."""
    if side not in ("left", "right"):
        raise ValueError(f"side must be left or right, got {side!r}")
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for line, row in zip(out, rows, strict=True):
        if row:
            line[slice(-len(row), None) if side == "left" else slice(len(row))] = torch.tensor(row)
    return out


def batch_rows(rows: list[dict], pad_id: int, side: str = "right") -> dict[str, Tensor]:
    """input_ids, attention_mask and, where rows have them, labels: (B, T) each."""
    batch = {
        "input_ids": pad_rows([row["input_ids"] for row in rows], pad_id, side),
        "attention_mask": pad_rows([[1] * len(row["input_ids"]) for row in rows], 0, side),
    }
    if "labels" in rows[0]:
        batch["labels"] = pad_rows([row["labels"] for row in rows], -100, side)
    return batch


def join_media(rows: list[dict]) -> dict:
    """The media of all rows, rows first: pixel_values (sum N, 3, S, S), frame_times, and two lists on the
    host.

    Empty when no row has media. Where features are stored, `stored_media` has (key, frames, is stored) of
    every file, and `tower_tokens` (sum N, P, D) stands for the pixels of those that are.
    """
    rows = [row for row in rows if row.get("medium_frames")]
    if not rows:
        return {}
    media = {
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        "frame_times": torch.cat([row["frame_times"] for row in rows]),
        "medium_frames": [count for row in rows for count in row["medium_frames"]],
        "medium_is_video": [kind for row in rows for kind in row["medium_is_video"]],
    }
    if "stored_media" in rows[0]:
        media["stored_media"] = [medium for row in rows for medium in row["stored_media"]]
    if tokens := [row["tower_tokens"] for row in rows if "tower_tokens" in row]:
        media["tower_tokens"] = torch.cat(tokens)
    return media
