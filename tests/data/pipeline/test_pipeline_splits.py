"""Splits: every row in one of them, shares as asked, the same ones always."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_world import write_jsonl

from quicksviewer.data.pipeline.splits import balance, cut, deal

RATIOS = {"train": 0.8, "validation": 0.1, "test": 0.1}


@given(
    count=st.integers(0, 400),
    ratios=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(lambda r: sum(r) > 0),
)
def test_shares_add_up_and_are_off_by_less_than_one(count, ratios):
    named = {str(place): ratio for place, ratio in enumerate(ratios)}
    (dealt,) = deal([count], named)
    assert sum(dealt.values()) == count
    for name, ratio in named.items():
        assert abs(dealt[name] - count * ratio / sum(ratios)) < 1


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    ratios=st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(lambda r: sum(r) > 0),
)
def test_sums_over_many_small_counts_are_off_by_less_than_one(counts, ratios):
    named = dict(zip(RATIOS, ratios, strict=True))
    dealt = list(deal(counts, named))
    assert [sum(shares.values()) for shares in dealt] == counts
    for name, ratio in named.items():
        share = ratio / sum(ratios)
        assert abs(sum(shares[name] for shares in dealt) - share * sum(counts)) < 1
        assert all(abs(d[name] - share * n) < 1 for d, n in zip(dealt, counts, strict=True))


def test_a_long_tail_of_values_reaches_every_split():
    values = [f"answer {row // 4}" for row in range(400)]
    sizes = {name: len(rows) for name, rows in cut(400, RATIOS, "f", 0, values=values).items()}
    assert sizes == {"train": 320, "validation": 40, "test": 40}
    alone = cut(10, RATIOS, "f", 0, values=[str(row) for row in range(10)])  # every value once
    assert {name: len(rows) for name, rows in alone.items()} == {"train": 8, "validation": 1, "test": 1}


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 200), seed=st.integers(0, 5), by=st.sampled_from(["plain", "values", "groups"]))
def test_every_row_is_in_one_split(length, seed, by):
    values = [str(row % 7) for row in range(length)]
    options = {} if by == "plain" else {by: values}
    found = cut(length, RATIOS, "f", seed, **options)
    assert np.array_equal(np.sort(np.concatenate(list(found.values()))), np.arange(length))
    again = cut(length, RATIOS, "f", seed, **options)
    assert all(np.array_equal(found[name], again[name]) for name in RATIOS)
    if by == "groups":
        homes = [{name for name, rows in found.items() for row in rows if values[row] == v} for v in values]
        assert all(len(home) == 1 for home in homes)
    if by == "values":
        for name, ratio in RATIOS.items():
            counts = Counter(values[row] for row in found[name])
            assert all(abs(counts[v] - ratio * n) < 1 for v, n in Counter(values).items())


def test_seeds_and_data_make_other_splits_and_order_can_be_kept():
    first = cut(100, RATIOS, "f", 0)["test"]
    assert not np.array_equal(first, cut(100, RATIOS, "f", 1)["test"])
    assert not np.array_equal(first, cut(100, RATIOS, "g", 0)["test"])
    kept = cut(10, RATIOS, "f", 0, shuffle=False)
    assert {name: rows.tolist() for name, rows in kept.items()} == {
        "train": list(range(8)),
        "validation": [8],
        "test": [9],
    }


@pytest.mark.parametrize(
    "strategy, counts", [("oversample", {"a": 6, "b": 6}), ("undersample", {"a": 4, "b": 4})]
)
def test_balanced_values_are_equally_frequent(strategy, counts):
    rows, values = np.arange(100, 110), list("aaaaaabbbb")
    found = balance(rows, values, strategy, "f", 0)
    assert Counter(values[row - 100] for row in found) == counts
    if strategy == "oversample":
        assert set(found) == set(rows)  # no row is lost
    assert np.array_equal(found, balance(rows, values, strategy, "f", 0))


def test_a_given_split_is_kept_and_only_missing_ones_are_cut(ready, world, rows, tmp_path):
    own = write_jsonl(
        tmp_path / "val.jsonl", [{**row, "image": str(world / "pictures" / row["image"])} for row in rows[:3]]
    )
    train = str(world / "pictures/rows.jsonl")
    split = {"auto_split": True, "train_ratio": 0.5, "val_ratio": 0.25, "test_ratio": 0.25}
    pipeline = ready(data_paths={"train": train, "validation": str(own)}, data_split=split)
    sizes = {name: len(data) for name, data in pipeline.datasets.items()}
    assert sizes == {"train": 11, "validation": 3, "test": 5}  # 16 rows, two to one
    assert pipeline.get_dataset("val").source.sources[0].path == str(own)
    numbers = [
        pipeline.get_dataset(name).record(i)["n"] for name in ("train", "test") for i in range(sizes[name])
    ]
    assert sorted(numbers) == list(range(16))


def test_strata_and_balance_read_the_rows(ready):
    split = {"auto_split": True, "train_ratio": 0.5, "val_ratio": 0.5, "test_ratio": 0.0}
    pipeline = ready(data_split=split | {"stratify_by": "question"})
    assert set(pipeline.datasets) == {"train", "validation"}
    asked = Counter(pipeline.get_dataset("val").example(i).text for i in range(8))
    assert set(asked.values()) == {4}
    grouped = ready(data_split=split | {"group_by": "image"})
    seen = {
        name: {grouped.get_dataset(name).record(i)["image"] for i in range(8)}
        for name in ("train", "validation")
    }
    assert len(seen["train"]) == 4 and not seen["train"] & seen["validation"]
    even = ready(balance={"enabled": True, "label_field": "answer"}).get_dataset("train")
    counts = Counter(even.example(i).target for i in range(len(even)))
    assert set(counts.values()) == {4} and len(counts) == 6


def test_too_few_rows_and_unknown_fields_are_errors(ready):
    with pytest.raises(ValueError, match="too few: auto_split left none for validation"):
        ready(data_split={"auto_split": True, "train_ratio": 0.98, "val_ratio": 0.01, "test_ratio": 0.01})
    with pytest.raises(Exception, match="rows.jsonl:1: no field 'kind'; it has: image, question, answer, n"):
        ready(data_split={"auto_split": True, "stratify_by": "kind"})
