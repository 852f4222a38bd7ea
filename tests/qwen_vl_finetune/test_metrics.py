"""Measures of texts against rapidfuzz and jiwer, and against counts by hand."""

import random

import pytest

from quicksviewer.qwen_vl_finetune.metrics import (
    METRICS,
    bleu4,
    character_error_rate,
    edit_distance,
    exact_match,
    latex_tokens,
    mean_character_error_rate,
    normalised_edit_distance,
    squeeze,
    symmetric_edit_distance,
)


def random_pairs(seed: int, count: int = 200):
    rng = random.Random(seed)

    def text():
        return "".join(rng.choices(r"abx\{}^_12 é", k=rng.randint(1, 25))).strip() or "a"

    pairs = [(text(), text()) for _ in range(count)]
    near = [(e[: len(e) // 2] + e[len(e) // 2 + 1 :], e) for _, e in pairs[: count // 4]]
    return [list(side) for side in zip(*pairs, *near, strict=True)]


@pytest.mark.parametrize("seed", [0, 1])
def test_distances_are_rapidfuzzs(seed):
    distance = pytest.importorskip("rapidfuzz.distance").Levenshtein
    predicted, expected = random_pairs(seed)
    assert all(
        edit_distance(p, e) == distance.distance(p, e) for p, e in zip(predicted, expected, strict=True)
    )
    tight = [squeeze(p) for p in predicted], [squeeze(e) for e in expected]
    longer = [distance.normalized_distance(p, e) for p, e in zip(*tight, strict=True)]
    assert symmetric_edit_distance(predicted, expected) == pytest.approx(sum(longer) / len(longer))
    by_reference = [distance.distance(p, e) / len(e) for p, e in zip(*tight, strict=True)]
    assert normalised_edit_distance(predicted, expected) == pytest.approx(
        sum(by_reference) / len(by_reference)
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_error_rates_are_jiwers(seed):
    jiwer = pytest.importorskip("jiwer")
    predicted, expected = random_pairs(seed)
    assert character_error_rate(predicted, expected) == pytest.approx(jiwer.cer(expected, predicted))
    alone = [jiwer.cer(e, p) for p, e in zip(predicted, expected, strict=True)]
    assert mean_character_error_rate(predicted, expected) == pytest.approx(sum(alone) / len(alone))


def test_bleu_by_hand():
    same = [r"\frac{a}{b}+x_{1}", r"\alpha^{2}"]
    assert bleu4(same, same) == pytest.approx(1)
    # \frac { a } { c } against \frac { a } { b }: 6 of 7, 4 of 6, 3 of 5, 2 of 4 tokens in a row agree.
    assert bleu4([r"\frac{a}{c}"], [r"\frac{a}{b}"]) == pytest.approx((6 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25)
    assert bleu4(["abcdef"], ["abcdefgh"]) == pytest.approx(2.718281828 ** (1 - 8 / 6))
    assert bleu4(["abab"], ["abcd"]) == 0, "no four in a row, and nothing is smoothed"
    assert bleu4([""], ["a"]) == 0


@pytest.mark.parametrize(
    ("text", "tight"),
    [
        (r"\frac { a } { b }", r"\frac{a}{b}"),
        (r"\alpha  x + \beta 2", r"\alpha x+\beta2"),
        (r"x \text{ if  y } z", r"x\text{ if  y }z"),
        (r"a \  b \, c", r"a\ b\,c"),
        ("  ", ""),
    ],
)
def test_spaces_that_latex_does_not_read_are_left_out(text, tight):
    assert squeeze(text) == tight == squeeze(tight)
    assert exact_match([text], [tight]) == 1


def test_tokens_and_edges():
    assert latex_tokens(r"\frac{a}2\{ \\") == [r"\frac", "{", "a", "}", "2", r"\{", r"\\"]
    assert exact_match([r"\alpha x"], [r"\alphax"]) == 0
    assert character_error_rate(["", "ab"], ["abcd", "ab"]) == pytest.approx(4 / 6)
    assert character_error_rate(["aaaa"], ["a"]) == 3, "insertions count, so it can exceed 1"
    for name, measure in METRICS.items():
        assert measure(["x"], ["x"]) == (1 if name == "exact" else 0), "of one token there are no four"
        with pytest.raises(ValueError, match="1 texts were predicted and 2 expected"):
            measure(["x"], ["x", "y"])
