"""easy-VQA as rows: what the package says, nothing lost, nothing made up."""

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from quicksviewer.data import easy_vqa
from quicksviewer.data.pipeline import DataPipeline, PipelineConfig
from quicksviewer.utils.config import build
from quicksviewer.utils.places import maker_of, may_be_on_hub

ROOT = Path(__file__).resolve().parents[2]

ENTRIES = {
    "train": [
        ["what color is the circle?", "red", 0],
        ["is there a circle?", "yes", 0],
        ["what is the blue shape?", "square", 1],
        ["is no red shape present?", "yes", 1],
        ["what shape is present?", "circle", 2],
    ],
    "test": [["what is the color of the shape?", "blue", 0], ["what shape is in the image?", "square", 0]],
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three pictures in the place of the real one."""
    for split, entries in ENTRIES.items():
        (tmp_path / "data" / split / "images").mkdir(parents=True)
        (tmp_path / "data" / split / "questions.json").write_text(json.dumps(entries))
        for number in {entry[2] for entry in entries}:
            Image.new("RGB", (64, 64), "red").save(tmp_path / f"data/{split}/images/{number}.png")
    monkeypatch.setattr(easy_vqa, "package_data", lambda: tmp_path / "data")
    return tmp_path


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_everything_is_written_and_read_by_the_pipeline(package, capsys):
    out = package / "out"
    assert easy_vqa.main(["--out", str(out)]) == 0
    assert [(r["question"], r["answer"], int(r["image"][6:-4])) for r in lines(out / "train.jsonl")] == [
        tuple(entry) for entry in ENTRIES["train"]
    ]
    assert [row["kind"] for row in lines(out / "train.jsonl")] == [
        "colour",
        "yes_no",
        "shape",
        "yes_no",
        "shape",
    ]
    assert lines(out / "captions_train.jsonl") == [
        {"image": "train/0.png", "caption": "a red circle"},
        {"image": "train/1.png", "caption": "a blue square"},
    ]
    pairs = lines(out / "pairs_train.jsonl")
    assert [(row["label"], row["text"] in ("a red circle", "a blue square")) for row in pairs] == [
        (1, True),
        (0, True),
    ] * 2
    config = {"data_paths": {"train": str(out / "train.jsonl"), "test": str(out / "test.jsonl")}}
    config |= {
        "task_type": "vqa",
        "tokenizer": {"name": str(out / "processor")},
        "image": {"root_dir": str(out)},
    }
    pipeline = DataPipeline(build(PipelineConfig, config, "test"))
    pipeline.setup()
    row = pipeline.get_dataset("train")[2]
    assert row["pixel_values"].shape == (3, 64, 64)
    assert pipeline.tokenizer.unk_token_id not in row["input_ids"] and len(row["labels"]) == 3
    assert pipeline.tokenizer.bos_token == "[DEC]"
    assert easy_vqa.main(["--out", str(out)]) == 0 and "is there already" in capsys.readouterr().out


SHIPPED = [*(ROOT / "configs/pipeline").glob("*.yaml"), ROOT / "compat/config/vqa_config.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_shipped_files_name_is_what_is_written(package, path, monkeypatch):
    monkeypatch.chdir(package)
    assert easy_vqa.main([]) == 0
    config = PipelineConfig.load(path)
    paths = [*config.data_paths.of("train"), *config.data_paths.of("test"), config.image.root_dir]
    assert all(Path(name).exists() and maker_of(name) for name in paths) and len(paths) == 3
    assert Path(config.tokenizer.name).is_dir() or may_be_on_hub(config.tokenizer.name)


def test_a_damaged_folder_is_written_anew_and_a_strange_question_refused(package, capsys):
    out = package / "out"
    assert easy_vqa.main(["--out", str(out)]) == 0
    (out / "train.jsonl").write_text("{}\n")
    assert easy_vqa.main(["--out", str(out)]) == 0 and len(lines(out / "train.jsonl")) == 5
    (package / "data/test/questions.json").write_text('[["who are you?", "me", 0]]')
    (out / "manifest.json").unlink()
    assert easy_vqa.main(["--out", str(out)]) == 2
    assert "'who are you?' -> 'me'" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("easy_vqa") is None, reason="easy-vqa is not installed")
def test_the_real_package_is_what_its_figures_say():
    data = easy_vqa.package_data()
    rows = {split: easy_vqa.read_questions(data, split) for split in easy_vqa.SPLITS}
    assert {split: len(found) for split, found in rows.items()} == {"train": 38575, "test": 9673}
    kinds = Counter(row["kind"] for row in rows["test"])
    assert kinds["yes_no"] == sum(row["answer"] in ("yes", "no") for row in rows["test"]) == 7136
    folders = {split: {path.name for path in (data / split / "images").iterdir()} for split in rows}
    for split, found in rows.items():
        assert {row["image"].split("/")[1] for row in found} <= folders[split]
    # What two questions tell of one picture never differs: a caption says what the answers say.
    captions = {row["image"]: row["caption"].split()[1:] for row in easy_vqa.captions_of(rows["train"])}
    for row in rows["train"]:
        if row["kind"] != "yes_no" and row["image"] in captions:
            assert row["answer"] in captions[row["image"]]


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(easy_vqa.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps easy-vqa"):
        easy_vqa.package_data()
