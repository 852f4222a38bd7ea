"""Every row of a file is in exactly one piece, whatever the file looks like and wherever it is cut."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quicksviewer.preprocess import reading
from quicksviewer.preprocess.files import Place, data_files
from quicksviewer.preprocess.reading import Unreadable, names_of, pieces_of, rows_of, shards_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)
SIZES = st.integers(1, 5)
FEW = settings(max_examples=30, deadline=None)


def read(folder, name, text: str, size: int, form: str = "rows", block: int = 5):
    """Rows of a file that is scanned `block` bytes at a time and read in pieces of `size` rows."""
    (folder / name).write_bytes(text.encode())
    place, before = Place(str(folder / name)), reading.BLOCK
    reading.BLOCK = block
    try:
        pieces = pieces_of(place, name, form, size, {})
    finally:
        reading.BLOCK = before
    numbered = [row for piece in pieces for row in rows_of(piece, ())]
    assert [number for number, _ in numbered] == list(range(len(numbered)))
    assert all(piece.rows <= size for piece in pieces)
    return [row for _, row in numbered]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reading")


@FEW
@given(rows=st.lists(OBJECTS), size=SIZES, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_json_lists(folder, rows, size, indent, ascii_only):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    assert read(folder, "a.json", text, size) == rows


@FEW
@given(rows=st.dictionaries(TEXTS, OBJECTS), size=SIZES, indent=st.sampled_from([None, 2]))
def test_json_objects(folder, rows, size, indent):
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    expected = [{**value, "_key": key} for key, value in rows.items()]
    assert read(folder, "a.json", text, size, "mapping") == expected


@FEW
@given(rows=st.lists(OBJECTS), size=SIZES, empty=st.booleans())
def test_json_lines(folder, rows, size, empty):
    text = "".join(json.dumps(row, ensure_ascii=False) + ("\n\n" if empty else "\n") for row in rows)
    assert read(folder, "a.jsonl", text, size) == rows


@FEW
@given(rows=st.lists(st.lists(TEXTS.filter(lambda t: "\0" not in t), min_size=2, max_size=2)), size=SIZES)
def test_csv_with_line_breaks_in_its_fields(folder, rows, size):
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    expected = [dict(zip("ab", row, strict=True)) for row in rows]
    assert read(folder, "a.csv", file.getvalue(), size) == expected


def test_a_byte_order_mark_is_no_part_of_a_row(folder):
    for name, text in (("a.json", '[{"a": 1}]'), ("a.jsonl", '{"a": 1}\n'), ("a.csv", "a\n1\n")):
        (row,) = read(folder, name, f"\ufeff{text}", 2)
        assert list(row) == ["a"]


def test_bad_rows_stand_in_their_places(folder):
    rows = read(folder, "a.jsonl", '{"a": 1}\n{"a"\n[1]\n', 2)
    assert isinstance(rows[1], Unreadable) and rows[::2] == [{"a": 1}, [1]]
    rows = read(folder, "a.csv", "a,b\n1,2\n1\n3,4\n", 2)
    assert isinstance(rows[1], Unreadable) and rows[2] == {"a": "3", "b": "4"}
    rows = read(folder, "a.json", '{"x": 1, "y": {"a": 2}}', 2, "mapping")
    assert isinstance(rows[0], Unreadable) and rows[1] == {"a": 2, "_key": "y"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"a": 1}, {"a"', r"a\.json: byte 15"),
        ("a.json", '[{"a": 1}', "ends inside"),
        ("a.json", '"text"', "expected a list or an object"),
        ("a.json", "", "expected a list or an object"),
        ("a.json", '{"a" 1}', "expected a colon"),
        ("a.txt", "x", r"ending of a data file '\.txt'"),
        ("a.parquet", "no parquet", "a.parquet"),
    ],
)
def test_broken_files_are_named(folder, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(folder, name, text, 2)


def test_a_deep_file_ends_in_an_error(folder):
    with pytest.raises(ValueError, match="recursion"):
        read(folder, "a.json", "[" * 200_000, 2, block=1 << 20)


def test_an_endless_element_is_not_taken_into_memory(folder, monkeypatch):
    monkeypatch.setattr(reading, "MAX_ELEMENT", 1000)
    with pytest.raises(ValueError, match="no JSON within 1000 bytes"):
        read(folder, "a.json", '["' + "x" * 5000, 2, block=100)


def test_small_files_share_a_shard_and_keep_their_names(tmp_path):
    for path in ("x/a.jsonl", "x/b.jsonl", "y/a.jsonl"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text('{"a": 1}\n{"a": 2}\n')
    places = data_files((str(tmp_path),))
    names = names_of(places)
    assert names == ["x/a.jsonl", "x/b.jsonl", "y/a.jsonl"]
    pieces = [
        piece
        for place, name in zip(places, names, strict=True)
        for piece in pieces_of(place, name, "rows", 4, {})
    ]
    shards = shards_of(pieces, 4)
    assert [[piece.name for piece in shard.pieces] for shard in shards] == [names[:2], names[2:]]
    assert data_files((f"{tmp_path}/x/*.jsonl",)) == places[:2]
