"""Formulas and their pictures: the same each time, in one split only, drawn as they are written."""

import numpy as np
import pytest

from quicksviewer.synthetic.formulas import (
    CELL,
    SPLITS,
    FormulaConfig,
    FormulaData,
    distinct_texts,
    join,
    render,
    split_of,
)


@pytest.mark.parametrize("kind", ["formula", "text"])
def test_no_text_is_in_two_splits_whatever_the_seed(kind):
    config = FormulaConfig(kind=kind)
    found = {split: set(distinct_texts(config, split, 150, seed)) for seed, split in enumerate(SPLITS)}
    assert all(len(texts) == 150 for texts in found.values())
    assert all({split_of(text) for text in texts} == {split} for split, texts in found.items())


def test_a_seed_decides_texts_and_pixels():
    a, b, c = (FormulaData("train", 20, seed=seed) for seed in (3, 3, 4))
    assert a.texts == b.texts != c.texts
    assert all(
        np.array_equal(np.asarray(a[n]["image"]), np.asarray(b[n]["image"])) and a[n]["text"] == a.texts[n]
        for n in range(20)
    )


def test_texts_that_may_repeat_keep_to_their_split():
    data = FormulaData("train", 300, FormulaConfig(kind="text", max_terms=1), repeats=True)
    assert len(data) == 300 > len(set(data.texts))
    assert {split_of(text) for text in data.texts} == {"train"} and {*map(len, data.texts)} == {1, 2}


def test_different_formulas_have_different_pictures_that_fill_cells():
    data = FormulaData("test", 60)
    pictures = [np.asarray(data[n]["image"]) for n in range(60)]
    assert len({p.tobytes() for p in pictures}) == 60
    for p in pictures:
        assert p.shape[0] % CELL == p.shape[1] % CELL == 0 and p.dtype == np.uint8
        assert (p[0] == 255).all() and (p[:, 0] == 255).all(), "ink at the border"
        assert p.min() < 100


def test_commands_do_not_run_into_letters():
    assert join([r"\alpha", "x"]) == r"\alpha x"
    assert join([r"\alpha", "2", "x"]) == r"\alpha2x"
    assert join([r"\frac{", r"\pi", "}{", "n", "}"]) == r"\frac{\pi}{n}"


def test_what_cannot_be_drawn_is_refused_with_its_reason():
    with pytest.raises(ValueError, match=r"mathtext cannot draw '\\\\frac\{a'"):
        render(r"\frac{a")
    with pytest.raises(ValueError, match="unknown kind of text 'formulae'. Did you mean 'formula'"):
        FormulaConfig(kind="formulae")
    with pytest.raises(ValueError, match="50000 different texts were asked for"):
        distinct_texts(FormulaConfig(max_terms=1), "test", 50000)
