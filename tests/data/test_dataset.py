"""Bad rows: each gives a message with file and line, and in training a record and a replacement."""

import json
from dataclasses import replace

import pytest
from tiny_world import fresh, videos

from quicksviewer.data.dataset import (
    BadSamplePolicy,
    LazySupervisedDataset,
    judges_of,
    make_supervised_data_module,
)
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.preprocess import SampleError
from quicksviewer.utils import data_util


def row(**changes) -> dict:
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
    return {"uid": "a", "data_type": "conversations", "video": "good.mp4", "conversations": turns} | changes


def said(*texts):
    return [{"from": who, "value": t} for who, t in zip(("human", "gpt") * 9, texts, strict=False)]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    good = videos(tiny)[0].read_bytes()
    (folder / "good.mp4").write_bytes(good)
    (folder / "cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "text.mp4").write_text("these are words, not a video")
    return folder


@pytest.fixture(scope="module")
def processor(tiny):
    return fresh(tiny).processor


def dataset(folder, processor, *lines, max_length=200, **policy):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "rows.jsonl").write_text(text + "\n")
    (spec,) = parse_mixture(str(folder / "rows.jsonl"))
    mixture = Mixture([replace(spec, media_root=str(folder))])
    quarantine = folder / "quarantine.jsonl"
    quarantine.unlink(missing_ok=True)
    return LazySupervisedDataset(mixture, processor, max_length, BadSamplePolicy(**policy), quarantine)


BAD = {
    "missing video": (row(video="nowhere.mp4"), "nowhere.mp4"),
    "truncated video": (row(video="cut.mp4"), "cut.mp4"),
    "text named mp4": (row(video="text.mp4"), "text.mp4"),
    "two marks, one video": (row(conversations=said("<video><video>\nWhat?", "red")), "<video>|mark"),
    "no JSON": ('{"uid": "a", ', "JSON"),
    "over-long": (row(conversations=said("<video>\nWhat?", "red " * 400)), "limit of 200"),
    "nothing to learn": (row(conversations=said("<video>\nWhat?")), "gpt|assistant|learn"),
    "control string": (row(conversations=said("<video>\nWhat?", "red <visual> one")), "<visual>"),
    "half a letter": (row(conversations=said("<video>\nWhat?", "red \ud800")), "half of a letter"),
    "unknown key": (row(vidoe="x"), "video"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_an_error_with_file_and_line(folder, processor, name):
    line, reason = BAD[name]
    data = dataset(folder, processor, row(), line, replace=False)
    with pytest.raises(SampleError, match=reason) as error:
        data[1]
    assert "rows.jsonl:2" in str(error.value)


@pytest.mark.parametrize("name", BAD)
def test_in_training_a_bad_row_is_recorded_and_replaced_by_the_same_rule_everywhere(folder, processor, name):
    line, _ = BAD[name]
    data = dataset(
        folder, processor, line, row(uid="b"), row(uid="c", conversations=said("<video>\nWho?", "blue"))
    )
    first, second = data[0], dataset(folder, processor, line, row(uid="b"), row(uid="c"))[0]
    assert first["input_ids"][:20] == second["input_ids"][:20]
    data[0]
    records = [json.loads(text) for text in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert {record["index"] for record in records} == {0} and "rows.jsonl:1" in records[0]["where"]


def test_when_nothing_is_usable_the_run_ends(folder, processor):
    with pytest.raises(SampleError, match="replacements in a row"):
        dataset(folder, processor, *[row(video="nowhere.mp4")] * 3)[0]


def test_too_many_bad_rows_end_the_run(folder, processor):
    lines = [row() if i % 2 else row(video="nowhere.mp4") for i in range(120)]
    data = dataset(folder, processor, *lines, max_share=0.2)
    with pytest.raises(SampleError, match="rows cannot be used"):
        for i in range(0, 120, 2):
            data[i]


def test_a_medium_is_judged_by_decoder_version_and_limits(processor, monkeypatch):
    whole, _ = judges_of(processor, 200)
    assert judges_of(processor.with_media(fps=2.0), 99)[0] == whole
    others = {"decoder": "decord"}, {"decode_seconds": 7.0}, {"decode_memory_mib": 7}, {"isolation": "none"}
    told = {judges_of(processor.with_media(**changes), 200)[0] for changes in others}
    monkeypatch.setattr(data_util.metadata, "version", lambda name: "99")
    newer = judges_of(processor, 200)
    assert len(told | {whole, newer[0]}) == 6 and "av 99" in newer[0]


def test_timestamps_of_a_row_choose_the_frames(folder, processor):
    data = dataset(folder, processor, row(timestamps=[0.5, 1.0]))
    assert data[0]["frame_times"].tolist() == [0.5, 1.0] and data[0]["medium_frames"] == [2]


def test_a_batch_is_its_rows_padded(tiny, processor):
    data_path = f"{tiny}/data/questions.jsonl;{tiny}/data/texts.jsonl"
    registry = None
    module = make_supervised_data_module(processor, data_path, 4000, registry, BadSamplePolicy(replace=False))
    rows = [module["train_dataset"][i] for i in (6, 7)]  # texts need no media root
    batch = module["data_collator"](rows)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    for line, one in enumerate(rows):
        length = len(one["input_ids"])
        assert batch["input_ids"][line, :length].tolist() == one["input_ids"]
        assert (batch["labels"][line, length:] == -100).all() and batch["attention_mask"][
            line
        ].sum() == length
    assert "pixel_values" not in batch


def test_labels_are_the_answers_and_their_end(tiny, processor):
    module = make_supervised_data_module(processor, f"{tiny}/data/texts.jsonl", 4000)
    one = module["train_dataset"][0]
    learned = [i for i, label in zip(one["input_ids"], one["labels"], strict=True) if label != -100]
    record = json.loads((tiny / "data/texts.jsonl").read_text().splitlines()[0])
    answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
    assert processor.tokenizer.decode(learned) == "".join(a + processor.tokenizer.eos_token for a in answers)
