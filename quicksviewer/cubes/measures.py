"""How good cuts are: against other cuts, and against the best possible."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from quicksviewer.model.multimodal_cubing.optimal import best_cuts, span_costs


def matches(found: Sequence[int], true: Sequence[int], slack: int = 1) -> int:
    """How many cuts can be paired with true ones at most `slack` frames away, each with one at most."""
    matched, rest = 0, sorted(true)
    for cut in sorted(found):  # both sorted: the earliest that fits is always a best choice
        near = next((place for place in rest if abs(place - cut) <= slack), None)
        if near is not None:
            matched += 1
            rest = [place for place in rest if place > near]
    return matched


def boundary_f1(found: Sequence[int], true: Sequence[int], slack: int = 1) -> float:
    """F1 of cuts (first frames of cubes, 0 left out), a cut within `slack` frames of one being right.

    Each cut matches at most one. Without any cuts on either side it is 1.
    """
    if not found or not true:
        return float(not found and not true)
    return 2 * matches(found, true, slack) / (len(found) + len(true))


def within_error(features_ND: Tensor, cuts: Sequence[int]) -> float:
    """Squared distance of frames to the mean of their cube, in float64."""
    frames_ND = features_ND.double()
    edges = [0, *cuts, len(frames_ND)]
    return sum(
        float((frames_ND[a:b] - frames_ND[a:b].mean(dim=0)).square().sum()) for a, b in pairwise(edges)
    )


def least_error(features_ND: Tensor, cubes: int) -> float:
    """The least that `within_error` can be with so many cubes."""
    count = torch.tensor([cubes])
    _, total = best_cuts(span_costs(features_ND[None]), torch.tensor([len(features_ND)]), count, cubes)
    return float(total)


def error_ratio(features_ND: Tensor, cuts: Sequence[int]) -> float:
    """`within_error` over the least possible; 1 where both are nothing."""
    least = least_error(features_ND, len(cuts) + 1)
    floor = 1e-9 * float(features_ND.double().square().sum()) + 1e-30
    return (within_error(features_ND, cuts) + floor) / (least + floor)
