"""Every kind of source gives the same rows, and says where each stands; what is no row says where it is."""

import csv
import json
import shutil

import pytest
from PIL import Image

from quicksviewer.data.pipeline.sources import SOURCES, Joined, open_joined, open_rows
from quicksviewer.data.preprocess import SampleError

ROWS = [
    {"image": "a.png", "question": "what, where?", "answer": 'a "red"\nsquare'},
    {"image": "b.png", "question": "où est-ce ?", "answer": "left"},
    {"image": "c.png", "question": "how many?", "answer": "3"},
]


def write_csv(path, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_lines(path):
    path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    return path


def write_parquet(path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    return path


def write_hub(path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return path


def write_folder(path):
    path.mkdir()
    renamed = [{"file_name": row["image"], **row} for row in ROWS]
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    return path


WRITERS = {
    "rows.jsonl": (write_lines, "rows.jsonl:3"),
    "rows.csv": (write_csv, "rows.csv:4"),  # its first record is two lines long
    "rows.tsv": (lambda path: write_csv(path, "\t"), "rows.tsv:4"),
    "rows.parquet": (write_parquet, "rows.parquet:row 1"),
    "hub": (write_hub, "hub:row 1"),
    "folder": (write_folder, "metadata.jsonl:2"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {name: write(root / name) for name, (write, _) in WRITERS.items()}


def test_every_kind_of_the_table_is_written_here(written):
    kinds = {next(kind for kind, (fits, _) in SOURCES.items() if fits(path)) for path in written.values()}
    assert kinds == set(SOURCES)


@pytest.mark.parametrize("name", WRITERS)
def test_the_rows_are_the_same_wherever_they_come_from(written, name):
    source = open_rows(written[name])
    found = [{key: record[key] for key in ROWS[0]} for record, _ in (source[i] for i in range(len(source)))]
    assert found == ROWS
    assert source[1][1] == source.where(1) and source.where(1).endswith(WRITERS[name][1])
    assert source.fingerprint == open_rows(written[name]).fingerprint and len(source.fingerprint) == 64
    with pytest.raises(IndexError):
        source[3]


def test_sources_are_joined_in_order(written):
    paths = [str(written[name]) for name in WRITERS]
    joined = open_joined(paths, in_order=True)
    assert len(joined) == 3 * len(WRITERS) and [joined[i][0]["answer"] for i in range(3, 6)] == [
        row["answer"] for row in ROWS
    ]
    folders = [joined.folder(3 * place) for place in range(len(paths))]
    assert folders[:4] == [str(written["rows.csv"].parent)] * 4
    assert folders[4:] == [str(written["hub"]), str(written["folder"])]
    assert open_joined(paths[::-1]).fingerprint != joined.fingerprint


def test_parquet_read_in_order_keeps_two_groups(written):
    import pyarrow
    from pyarrow import parquet

    path = written["rows.parquet"].with_name("many.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"n": n} for n in range(10)]), path, row_group_size=2)
    joined = open_joined([str(path)], in_order=True)
    assert [joined[n][0]["n"] for n in range(10)] == list(range(10))
    assert sorted(joined.sources[0]._groups) == [3, 4]
    free = open_rows(path)
    assert [free[n][0]["n"] for n in (9, 0, 5)] == [9, 0, 5] and sorted(free._groups) == [0, 2, 4]


def test_an_image_folder_without_rows_labels_by_folder(tmp_path):
    for name in ("cat/1.png", "dog/2.jpg", "3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    source = open_rows(tmp_path)
    assert [source[i][0] for i in range(3)] == [
        {"image": "3.png", "label": None},
        {"image": "cat/1.png", "label": "cat"},
        {"image": "dog/2.jpg", "label": "dog"},
    ]


def test_pictures_of_a_saved_dataset_stay_encoded(tmp_path):
    import datasets

    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "red.png")], "answer": ["red"]})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "hub")
    record, _ = open_rows(tmp_path / "hub")[0]
    assert record["image"]["bytes"] == (tmp_path / "red.png").read_bytes()


BAD = {
    "cells.csv": ("a,b\n1,2\n3\n", 1, SampleError, r"cells.csv:3: 1 cells, expected 2"),
    "twice.csv": ("a,a\n1,2\n", None, ValueError, r"twice.csv:1: names of columns"),
    "empty.csv": ("", None, ValueError, "empty.csv is empty"),
    "latin.csv": (b"a,b\n1,\xe9\n", None, SampleError, r"latin.csv:2: not UTF-8"),
    "rows.jsonl": ('{"a": 1}\n{"a": }\n', 1, SampleError, r"rows.jsonl:2: not readable as JSON"),
    "no.parquet": ("PAR1", None, ValueError, "no.parquet is no parquet file"),
    "rows.xml": ("<a/>", None, ValueError, "is no source of rows"),
    "none.jsonl": ("\n", None, ValueError, "no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_row_says_where_it_is(tmp_path, name):
    text, row, kind, message = BAD[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(kind, match=message):
        joined = open_joined([str(tmp_path / name)])
        joined[row]


def test_a_folder_of_several_datasets_names_them(tmp_path):
    import datasets

    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "all")
    with pytest.raises(ValueError, match="name one of them: .*all/train"):
        open_rows(tmp_path / "all")
    with pytest.raises(ValueError, match="there is no data at"):
        open_rows(tmp_path / "nowhere.csv")


def test_a_file_that_changes_is_noticed(tmp_path):
    path = shutil.copy(write_csv(tmp_path / "rows.csv"), tmp_path / "other.csv")
    source = Joined([open_rows(path)])
    with open(path, "a") as file:
        file.write("x,y,z\n")
    with pytest.raises(OSError, match="has changed"):
        source[0]
