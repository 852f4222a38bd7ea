"""Mixtures: what the line and the file say, which rows come out, and that a changed byte is noticed."""

import json
import multiprocessing
import pickle
from collections import Counter

import numpy as np
import pytest

from quicksviewer.data.mixture import (
    DatasetSpec,
    JsonlIndex,
    Mixture,
    RegistryEntry,
    expand_braces,
    load_registry,
    parse_mixture,
    spread_subset,
)
from quicksviewer.data.preprocess import SampleError

REGISTRY = {"clips": RegistryEntry("data/clips.jsonl", "media/clips"), "a.b": RegistryEntry("ab.jsonl")}


def write_rows(path, count: int, prefix: str = "r"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"uid": f"{prefix}{i}", "text": "é東😀" * (i % 4)}, ensure_ascii=False)
        for i in range(count)
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def uids(mixture) -> list[str]:
    return [mixture[i][0]["uid"] for i in range(len(mixture))]


# The line

LINES = {
    "a.jsonl": [DatasetSpec("a.jsonl")],
    " a.jsonl ; b.jsonl": [DatasetSpec("a.jsonl"), DatasetSpec("b.jsonl")],
    "a.jsonl*2": [DatasetSpec("a.jsonl", 2.0)],
    "a.jsonl*.5": [DatasetSpec("a.jsonl", 0.5)],
    "a.jsonl*2.5#3_9": [DatasetSpec("a.jsonl", 2.5, 3, 9)],
    "a.jsonl#3_9*2.5": [DatasetSpec("a.jsonl", 2.5, 3, 9)],
    "d/a_{x,y}.jsonl#0_4": [DatasetSpec("d/a_x.jsonl", 1.0, 0, 4), DatasetSpec("d/a_y.jsonl", 1.0, 0, 4)],
    "a.jsonl{,*2}": [DatasetSpec("a.jsonl"), DatasetSpec("a.jsonl", 2.0)],
    "clips*3;a.b": [DatasetSpec("data/clips.jsonl", 3.0, media_root="media/clips"), DatasetSpec("ab.jsonl")],
    "a_b.yaml;c.yaml": [DatasetSpec("a_b.yaml"), DatasetSpec("c.yaml")],
}


@pytest.mark.parametrize(("line", "specs"), LINES.items(), ids=LINES)
def test_a_line_says_what_to_read(line, specs):
    assert parse_mixture(line, REGISTRY) == tuple(specs)


def test_braces_expand_as_in_a_shell():
    assert expand_braces("a{x,y{1,2}}b{p,q}") == ["axbp", "axbq", "ay1bp", "ay1bq", "ay2bp", "ay2bq"]
    assert expand_braces("plain") == ["plain"] and expand_braces("{,x}") == ["", "x"]


WRONG_LINES = {
    "a.jsonl;": "mixture piece ''",
    "a.jsonl;;b.jsonl": "mixture piece ''",
    "ok.jsonl;a.jsonl*": "mixture piece 'a.jsonl*': '*' is neither",
    "a.jsonl*-1": "'*-1' is neither a repeat",
    "a.jsonl*0": "repeat must be more than 0",
    "a.jsonl*2*3": "two times a repeat",
    "a.jsonl#1_2#3_4": "two times a slice",
    "a.jsonl#5": "'#5' is neither",
    "a.jsonl#5_5": "0 <= start < stop, got 5 and 5",
    "a.jsonl#9_5": "0 <= start < stop",
    "a.jsonl*2x": "'x' is neither",
    "a{x,y": "opened and not closed",
    "a}x,y{": "closed that was not opened",
    "a{x,y}}": "closed that was not opened",
    "a{1..3}.jsonl": "'{1..3}' has no comma",
    "*2": "needs a path",
}


@pytest.mark.parametrize(("line", "reason"), WRONG_LINES.items(), ids=WRONG_LINES)
def test_a_wrong_line_names_the_piece(line, reason):
    with pytest.raises(ValueError, match="mixture piece") as caught:
        parse_mixture(line)
    assert reason in str(caught.value)


# The file


def test_a_file_says_the_same(tmp_path):
    registry = tmp_path / "datasets.yaml"
    registry.write_text("clips: {path: data/clips.jsonl, media_root: media/clips}\nplain: {path: p.jsonl}\n")
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        "datasets:\n"
        "  - {name: clips, repeat: 2}\n"
        "  - {name: clips, media_root: elsewhere}\n"
        "  - {path: 'odd*name;x.jsonl', slice: [3, 9], repeat: 0.5, media_root: m}\n"
    )
    expected = (
        DatasetSpec("data/clips.jsonl", 2.0, media_root="media/clips"),
        DatasetSpec("data/clips.jsonl", media_root="elsewhere"),
        DatasetSpec("odd*name;x.jsonl", 0.5, 3, 9, "m"),
    )
    assert (
        parse_mixture(mixture, registry) == parse_mixture(str(mixture), load_registry(registry)) == expected
    )


WRONG_FILES = {
    "dataset: []": "Did you mean 'datasets'?",
    "datasets: []": "datasets is empty",
    "datasets: [{name: clip}]": "datasets[0]: unknown data set 'clip'. Did you mean 'clips'?",
    "datasets: [{path: a}, {repeat: 2}]": "datasets[1]: give a name",
    "datasets: [{path: a, name: clips}]": "not both",
    "datasets: [{path: a, repeats: 2}]": "Did you mean 'repeat'?",
    "datasets: [{path: a, repeat: two}]": "repeat",
    "datasets: [{path: a, repeat: 0}]": "datasets[0]: repeat must be more than 0",
    "datasets: [{path: a, slice: [1]}]": "slice",
    "datasets: [{path: a, slice: [4, 2]}]": "datasets[0]: slice must have",
}


@pytest.mark.parametrize(("text", "reason"), WRONG_FILES.items(), ids=WRONG_FILES)
def test_a_wrong_file_names_the_place(tmp_path, text, reason):
    path = tmp_path / "mixture.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        parse_mixture(path, REGISTRY)
    assert reason in str(caught.value) and str(path) in str(caught.value)


# The rows of a file


def test_rows_are_found_by_byte_and_named_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\n{"uid": "é😀"}\r\n  \t\n\n{"uid": "東"}\n{"uid": "no line break"}'.encode())
    index = JsonlIndex(path)
    assert len(index) == 3 and index.offsets.dtype == np.int64
    assert [index[i] for i in (2, 0, 1)] == [
        ({"uid": "no line break"}, f"{path}:6"),
        ({"uid": "é😀"}, f"{path}:2"),
        ({"uid": "東"}, f"{path}:5"),
    ]
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            index[outside]


BAD_ROWS = {
    b'{"a": 1,}': "column 9",
    b'{"a": 1': "column 8",
    b"{'a': 1}": "column 2",
    b'{"a": 1} {"b": 2}': "column 10",
    b'{"a": 1, "b": {"c": 1, "c": 2}}': "key 'c' is set twice",
    b'{"a": NaN}': "NaN is no number of JSON",
    b'{"a": -Infinity}': "-Infinity is no number",
    b'["a"]': "must be an object, got list",
    b'{"a": "\xff"}': "not UTF-8, byte 8",
    b"[" * 100_000: "not readable as JSON",
}


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS.items(), ids=[str(i) for i in range(len(BAD_ROWS))])
def test_a_bad_line_is_named_and_the_others_can_be_read(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"uid": "a"}\n\n' + line + b'\n{"uid": "b"}\n')
    index = JsonlIndex(path)
    assert [index[0][0], index[2][0]] == [{"uid": "a"}, {"uid": "b"}]
    with pytest.raises(SampleError) as caught:
        index[1]
    assert caught.value.where == f"{path}:3" and reason in caught.value.reason


def test_a_file_that_changes_while_in_use_is_noticed(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, 3)
    index = JsonlIndex(path)
    with path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(OSError, match="has changed"):
        index[0]


def test_an_index_and_a_mixture_travel_to_other_processes(tmp_path):
    mixture = Mixture([DatasetSpec(write_rows(tmp_path / "a.jsonl", 40), 1.5)])
    expected = [mixture[i] for i in range(len(mixture))]
    copy = pickle.loads(pickle.dumps(mixture))
    assert [copy[i] for i in range(len(copy))] == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(mixture.__getitem__, range(len(mixture))) == expected


# The mixture


def test_a_mixture_is_its_parts_one_after_the_other(tmp_path):
    a, b = write_rows(tmp_path / "a.jsonl", 5, "a"), write_rows(tmp_path / "b.jsonl", 3, "b")
    mixture = Mixture([DatasetSpec(b), DatasetSpec(a, 2.0, 1, 4), DatasetSpec(b, 1.0, 2, 3)])
    assert uids(mixture) == ["b0", "b1", "b2", *["a1", "a2", "a3"] * 2, "b2"]
    assert mixture[3][1] == f"{a}:2" and mixture[9][1] == f"{b}:3"
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            mixture[outside]


@pytest.mark.parametrize("repeat", [0.3, 1.0, 1.3, 2.5, 3.0])
def test_a_fraction_is_a_subset_that_never_changes(tmp_path, repeat):
    path = write_rows(tmp_path / "a.jsonl", 50)
    mixture = Mixture([DatasetSpec(path, repeat, 10, 30)])
    assert len(mixture) == round(20 * repeat) and uids(mixture) == uids(Mixture(mixture.specs))
    counts = Counter(uids(mixture))
    assert set(counts) <= {f"r{i}" for i in range(10, 30)}
    assert set(counts.values()) <= {int(repeat), int(repeat) + 1}


def test_a_subset_has_no_pattern_and_lies_in_larger_ones():
    half = spread_subset(10_000, 5_000)
    assert set(spread_subset(10_000, 1_000)) < set(half)
    for period in (2, 3, 4, 7):
        shares = np.bincount(half % period) / len(half)
        assert abs(shares - 1 / period).max() < 0.02
    assert abs(half.mean() - 5_000) < 100
    # Runs of other machines and years must draw the same rows.
    assert spread_subset(20, 6).tolist() == [2, 4, 5, 6, 8, 18]


def test_media_are_put_under_the_root_of_their_data_set(tmp_path):
    path = tmp_path / "a.jsonl"
    record = {"image": ["a.jpg", None, "/abs/b.jpg"], "video": "c.mp4", "video_id": 7, "caption": "c.mp4"}
    path.write_text(json.dumps(record))
    assert Mixture([DatasetSpec(str(path))])[0][0] == record
    rooted = Mixture([DatasetSpec(str(path), media_root="root")])[0][0]
    assert rooted == record | {"image": ["root/a.jpg", None, "/abs/b.jpg"], "video": "root/c.mp4"}


def test_a_mixture_that_gives_nothing_is_refused(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", 5)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    for specs, reason in (
        ([], "needs a data set"),
        ([DatasetSpec(path, 1.0, 2, 6)], r"no slice 2\.\.6, the file has 5 rows"),
        ([DatasetSpec(path, 1.0, 5)], "the file has 5 rows"),
        ([DatasetSpec(path, 0.05)], "leaves none"),
        ([DatasetSpec(str(empty))], "the file has 0 rows"),
    ):
        with pytest.raises(ValueError, match=reason):
            Mixture(specs)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Mixture([DatasetSpec("nowhere.jsonl")])


def test_the_fingerprint_knows_rows_and_order_but_not_places(tmp_path):
    a, b = write_rows(tmp_path / "a.jsonl", 5, "a"), write_rows(tmp_path / "b.jsonl", 5, "b")
    moved = write_rows(tmp_path / "elsewhere" / "a.jsonl", 5, "a")
    base = Mixture([DatasetSpec(a), DatasetSpec(b)]).fingerprint
    assert base == Mixture([DatasetSpec(moved, media_root="m"), DatasetSpec(b)]).fingerprint
    others = [
        [DatasetSpec(b), DatasetSpec(a)],
        [DatasetSpec(a)],
        [DatasetSpec(a, 2.0), DatasetSpec(b)],
        [DatasetSpec(a, 1.0, 1), DatasetSpec(b)],
        [DatasetSpec(a, 1.0, 0, 4), DatasetSpec(b)],
    ]
    prints = [Mixture(specs).fingerprint for specs in others]
    (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text().replace("b4", "b5"))
    prints.append(Mixture([DatasetSpec(a), DatasetSpec(b)]).fingerprint)
    assert len({base, *prints}) == len(prints) + 1
