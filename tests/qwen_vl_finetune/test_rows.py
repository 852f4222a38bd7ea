"""Rows from every source, opened one at a time, and what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from quicksviewer.data.preprocess import SampleError
from quicksviewer.qwen_vl_finetune import data_processing as tools
from quicksviewer.qwen_vl_finetune.rows import open_rows
from quicksviewer.qwen_vl_finetune.settings import CONFIG
from quicksviewer.synthetic.formulas import FormulaData


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same six formulas as train.jsonl with PNG files, and as test.parquet."""
    import pyarrow
    import pyarrow.parquet

    folder, data, lines = tmp_path_factory.mktemp("rows"), FormulaData("train", 6), []
    for n in range(6):
        data[n]["image"].save(folder / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "text": data[n]["text"]}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    columns = {
        "image": [{"bytes": _png(data[n]["image"]), "path": None} for n in range(6)],
        "text": data.texts,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "test.parquet")
    return folder


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(("split", "name"), [("train", "."), ("train", "train.jsonl"), ("test", ".")])
def test_rows_are_the_pictures_and_texts_of_their_files(folder, cache, split, name):
    rows, data = open_rows(folder / name, split), FormulaData("train", 6)
    assert len(rows) == 6
    for n in range(6):
        assert rows[n]["text"] == data[n]["text"]
        assert np.array_equal(np.asarray(rows[n]["image"]), np.asarray(data[n]["image"]))
    assert rows[-1]["text"] == data[5]["text"]
    few = open_rows(folder / name, split, max_samples=2)
    assert len(few) == 2 and few[1]["text"] == data[1]["text"]
    with pytest.raises(IndexError):
        few[2]


def test_drawn_formulas_are_split(tmp_path):
    train, test = open_rows("synthetic", "train", 50), open_rows("synthetic", "test", 50)
    assert not set(train.texts) & set(test.texts) and len(train) == len(test) == 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "0.png"}', "a row needs 'text', a text; it has image"),
        ('{"image": 3, "text": "x"}', "a row needs 'image'"),
        ('{"image": "none.png", "text": "x"}', "none.png"),
        ('{"image": "../0.png", "text": "x"}', "0.png"),
        ("{", "not readable as JSON"),
    ],
)
def test_a_bad_line_names_file_and_line(folder, tmp_path, line, message):
    good = (folder / "train.jsonl").read_text().splitlines()[0]
    (tmp_path / "train.jsonl").write_text(f"{good}\n{line}\n")
    (tmp_path / "0.png").write_bytes((folder / "0.png").read_bytes())
    rows = open_rows(tmp_path)
    assert rows[0]["text"]
    with pytest.raises(SampleError, match="train.jsonl:2") as error:
        rows[1]
    assert message in str(error.value)


def test_what_is_no_data_set_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="is one split, train; for 'test' give a folder"):
        open_rows(folder / "train.jsonl", "test")
    with pytest.raises(
        ValueError, match="has no split 'validation': expected validation.jsonl, validation.parq"
    ):
        open_rows(folder, "validation")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_rows(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="there are no rows"):
        open_rows(tmp_path / "empty.jsonl")


def test_conversations_open_no_picture_until_asked(folder):
    opened = []

    class Watched(list):
        def __getitem__(self, place):
            opened.append(place)
            return super().__getitem__(place)

    rows = Watched([{"image": Image.new("RGB", (28, 28)), "text": str(n)} for n in range(9)])
    converted = tools.convert_dataset_to_conversations(rows)
    assert len(converted) == 9 and opened == []
    record = converted[4]
    assert opened == [4] and record["messages"][1]["content"] == [{"type": "text", "text": "4"}]
    assert [r["messages"][1]["content"][0]["text"] for r in converted[-2:]] == ["7", "8"] and opened == [
        4,
        7,
        8,
    ]
    assert len(list(converted)) == 9
    with pytest.raises(IndexError):
        converted[9]


def test_the_order_of_picture_and_words_is_one_setting(tmp_path, monkeypatch):
    sample = FormulaData("train", 1)[0]
    kinds = [part["type"] for part in tools.convert_to_conversation(sample)["messages"][0]["content"]]
    assert kinds == ["image", "text"]
    (tmp_path / "s.yaml").write_text("image_first: false\ninstruction: Read it.\n")
    monkeypatch.setenv(CONFIG, str(tmp_path / "s.yaml"))
    words, picture = tools.convert_to_conversation(sample)["messages"][0]["content"]
    assert words == {"type": "text", "text": "Read it."} and picture["image"] is sample["image"]
    (tmp_path / "s.yaml").write_text("instrution: Read it.\n")
    with pytest.raises(ValueError, match="OcrSettings has no 'instrution'. Did you mean 'instruction'"):
        tools.load_latex_dataset("synthetic")


def test_rows_are_shown(capsys):
    data = FormulaData("train", 2)
    assert tools.display_dataset_sample(data)["text"] == data.texts[1], (
        "two rows: the last in place of the third"
    )
    assert f"LaTeX: {data.texts[1]}" in capsys.readouterr().out
    record = tools.show_conversation_example(tools.convert_dataset_to_conversations(data))
    assert capsys.readouterr().out.splitlines() == [
        "user: <image> Write the LaTeX representation for this image.",
        f"assistant: {data.texts[0]}",
    ]
    assert len(record["messages"]) == 2
    assert np.array_equal(np.asarray(tools.render_latex(data.texts[0])), np.asarray(data[0]["image"]))
    assert tools.render_latex(r"\begin{matrix}") is None
    assert "no picture: mathtext cannot draw" in capsys.readouterr().out
    with pytest.raises(ValueError, match="the data set is empty"):
        tools.display_dataset_sample([])
