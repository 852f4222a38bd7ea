"""Attention of a packed row: document by document against one mask of all tokens by all tokens.

    python benchmarks/documents.py [--repeats 7]

A row of 4096 tokens that holds 24 documents, 8 heads of width 64, forward and backward, float32, one thread.
Results and gradients are compared first. Peak memory is what a fresh child takes beyond its inputs. Prints
one JSON.
"""

import argparse
import json
import sys

import numpy as np
import torch
from common import extra_peak_mib, in_child, interleaved, ratio_row

from quicksviewer.model.documents import attention_by_document, causal_in_documents, document_runs

TOKENS, DOCUMENTS, HEADS, WIDTH = 4096, 24, 8, 64
TARGET = 3.0


def make_row() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Numbers of documents (1, T), and queries, keys, values (1, H, T, D)."""
    borders = np.sort(np.random.default_rng(0).choice(np.arange(1, TOKENS), DOCUMENTS - 1, replace=False))
    lengths = np.diff([0, *borders, TOKENS])
    segments = torch.from_numpy(np.repeat(np.arange(1, DOCUMENTS + 1), lengths))[None]
    generator = torch.Generator().manual_seed(0)
    shape = (1, HEADS, TOKENS, WIDTH)
    return segments, tuple(torch.randn(shape, generator=generator).requires_grad_() for _ in range(3))


def attend(name: str, segments: torch.Tensor, qkv: tuple) -> list[torch.Tensor]:
    """What is read and the gradients of its sum of squares. Mask or runs are made anew, as in a step."""
    inputs = (
        dict(attention_mask=causal_in_documents(segments))
        if name == "mask"
        else dict(attention_mask=None, documents=document_runs(segments))
    )
    read, _ = attention_by_document(torch.nn.Module(), *qkv, **inputs)
    return [read, *torch.autograd.grad(read.square().sum(), qkv)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-of", choices=["mask", "documents"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    row = make_row()
    if args.peak_of:
        print(json.dumps(extra_peak_mib(lambda: attend(args.peak_of, *row))))
        return 0
    difference = max(
        float((a - b).abs().max())
        for a, b in zip(*(attend(n, *row) for n in ("mask", "documents")), strict=True)
    )
    assert difference < 1e-4, difference
    times = interleaved({n: lambda n=n: attend(n, *row) for n in ("mask", "documents")}, args.repeats)
    peaks = {n: round(in_child(__file__, "--peak-of", n)) for n in ("mask", "documents")}
    out = ratio_row(times["mask"], times["documents"], TARGET)
    print(json.dumps({"difference": difference, "peak_mib": peaks} | out))
    return 0 if out["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
