"""Figures of merit: of the class (AUROC, accuracy, F1 for "fake") and of the heat map (IoU, Dice).

N pictures. Heat maps are judged where the picture is, against the mask's own pixels, never against a
threshold of the prediction. Only fakes with a mask have an IoU; how much heat real pictures
get is a figure of its own.
"""

import math
import warnings
from dataclasses import dataclass, field

import numpy as np

THRESHOLD = 0.5


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often a fake scores above a real picture, ties counted half.

    `labels` (N,) 0 or 1, `scores` (N,), larger is more fake. NaN with a warning if one class is missing.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, np.float64)
    fakes, reals = int(labels.sum()), int((~labels).sum())
    if not fakes or not reals:
        warnings.warn(f"AUROC needs both classes, got {fakes} fake and {reals} real", stacklevel=2)
        return math.nan
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum() - (counts - 1) / 2)[place]  # equal scores share the mean of their ranks
    return float((rank[labels].sum() - fakes * (fakes + 1) / 2) / (fakes * reals))


def classification(labels, scores, threshold: float = THRESHOLD) -> dict[str, float]:
    """auroc, acc and f1 (of "fake"; 0 where nothing is fake and nothing is called so) of N scores in 0 ..
    1."""
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"expected as many labels as scores and at least one, got {labels.shape}, {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    called = scores >= threshold
    right = int((labels & called).sum())
    ratio = _ratio(2 * right, int(labels.sum() + called.sum()), empty=0.0)
    return {"auroc": auroc(labels, scores), "acc": float((labels == called).mean()), "f1": ratio}


@dataclass
class MapScores:
    """IoU and Dice of heat maps, gathered picture by picture.

    Macro (`mean_iou`, `mean_dice`) is the mean over fakes with a mask; micro pools all their pixels.
    """

    threshold: float = THRESHOLD
    common: list[int] = field(default_factory=list)
    called: list[int] = field(default_factory=list)
    forged: list[int] = field(default_factory=list)
    heat_of_clean: list[float] = field(default_factory=list)
    """Of each real picture, the share of its pixels that are called forged."""

    def add(
        self, heat_HW: np.ndarray, mask_HW: np.ndarray, inside_HW: np.ndarray, label: int
    ) -> tuple[float, float]:
        """Count one picture with a known mask; its own IoU and Dice, NaN for a real one.

        `heat_HW` in 0 .. 1, the others bool, all of one size.
        """
        called, forged = (heat_HW >= self.threshold) & inside_HW, mask_HW & inside_HW
        assert forged.any() == bool(label), (
            "a fake with an empty mask has an unknown one, which is not counted"
        )
        if not label:
            self.heat_of_clean.append(_ratio(int(called.sum()), int(inside_HW.sum()), empty=math.nan))
            return math.nan, math.nan
        counts = (int((called & forged).sum()), int(called.sum()), int(forged.sum()))
        for kept, count in zip((self.common, self.called, self.forged), counts, strict=True):
            kept.append(count)
        return iou(*counts), dice(*counts)

    def figures(self) -> dict[str, float]:
        """mean_iou, mean_dice, micro_iou, micro_dice, num_masks, heat_of_clean; NaN where nothing was
        counted."""
        each = list(zip(self.common, self.called, self.forged, strict=True))
        total = (sum(self.common), sum(self.called), sum(self.forged))
        return {
            "mean_iou": _mean([iou(*counts) for counts in each]),
            "mean_dice": _mean([dice(*counts) for counts in each]),
            "micro_iou": iou(*total) if each else math.nan,
            "micro_dice": dice(*total) if each else math.nan,
            "num_masks": len(each),
            "heat_of_clean": _mean(self.heat_of_clean),
        }


def iou(common: int, called: int, forged: int) -> float:
    """Common pixels by those that either has."""
    return _ratio(common, called + forged - common, empty=math.nan)


def dice(common: int, called: int, forged: int) -> float:
    """Twice the common pixels by the sum of both."""
    return _ratio(2 * common, called + forged, empty=math.nan)


def _ratio(part: float, whole: float, empty: float) -> float:
    return part / whole if whole else empty


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
