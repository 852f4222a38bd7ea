"""Figures against scikit-learn on random cases."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, roc_auc_score

from quicksviewer.qwen_vl_finetune.pipelines.metrics import MapScores, auroc, classification


@pytest.mark.parametrize("seed", range(20))
def test_class_figures_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, rng.integers(1, 60))]
    scores = rng.random(len(labels)).round(int(rng.integers(1, 6)))  # few digits make ties
    called = scores >= 0.5
    found = classification(labels, scores)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found["acc"] == accuracy_score(labels, called)
    assert found["f1"] == pytest.approx(f1_score(labels, called, zero_division=0), abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1]])
def test_a_single_class_has_no_auroc(labels):
    with pytest.warns(UserWarning, match="needs both classes"):
        assert math.isnan(auroc(labels, [0.5] * len(labels)))


def test_scores_that_are_no_numbers_or_too_few_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        classification([0, 1], [0.1, math.nan])
    with pytest.raises(ValueError, match="as many labels as scores"):
        classification([0, 1], [0.1])


@pytest.mark.parametrize("seed", range(10))
def test_map_figures_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores, masks, calls, ious, dices = MapScores(), [], [], [], []
    for _ in range(5):
        heat, mask, inside = rng.random((8, 9)), rng.random((8, 9)) < 0.3, rng.random((8, 9)) < 0.8
        own = scores.add(heat, mask, inside, 1)
        truth, called = mask[inside], heat[inside] >= 0.5
        masks.append(truth), calls.append(called)
        ious.append(jaccard_score(truth, called)), dices.append(f1_score(truth, called))
        assert own == pytest.approx((ious[-1], dices[-1]))
    found = scores.figures()
    assert found["mean_iou"] == pytest.approx(np.mean(ious))
    assert found["mean_dice"] == pytest.approx(np.mean(dices))
    assert found["micro_iou"] == pytest.approx(jaccard_score(np.concatenate(masks), np.concatenate(calls)))
    assert found["micro_dice"] == pytest.approx(f1_score(np.concatenate(masks), np.concatenate(calls)))


def test_real_pictures_are_a_figure_of_their_own():
    scores, inside = MapScores(), np.ones((2, 4), bool)
    heat = np.array([[0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]])
    assert all(math.isnan(v) for v in scores.add(heat, np.zeros((2, 4), bool), inside, 0))
    found = scores.figures()
    assert found["heat_of_clean"] == 0.25 and found["num_masks"] == 0 and math.isnan(found["mean_iou"])
    with pytest.raises(AssertionError, match="a fake with an empty mask"):
        scores.add(heat, np.zeros((2, 4), bool), inside, 1)
    assert scores.figures() == pytest.approx(found, nan_ok=True)
