"""What is in a batch, and that nothing but the YAML decides it: not workers, caches or the kind of source."""

import base64
import json
import shutil

import pytest
import torch
from picture_world import picture, write_jsonl
from PIL import Image

from quicksviewer.data.pipeline import DataPipeline
from quicksviewer.data.pipeline.encode import Encoder
from quicksviewer.data.preprocess import SampleError


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def epochs(pipeline: DataPipeline, count: int = 2) -> list[dict]:
    loader = pipeline.get_train_dataloader()
    return [batch for _ in range(count) for batch in loader]


def test_a_batch_is_what_the_processor_makes_of_its_rows(ready, rows, world):
    pipeline = ready(dataloader={"batch_size": 5, "shuffle": False})
    assert len(pipeline.get_train_dataloader()) == 4
    batch = next(iter(pipeline.get_train_dataloader()))
    tokenizer, pictures = pipeline.tokenizer, pipeline.image_processor
    asked = tokenizer([row["question"] for row in rows[:5]], padding=True, return_tensors="pt")
    assert batch["input_ids"].equal(asked["input_ids"]) and batch["attention_mask"].equal(
        asked["attention_mask"]
    )
    answers = tokenizer([row["answer"] for row in rows[:5]], padding=True, return_tensors="pt")["input_ids"]
    assert batch["labels"].equal(answers.masked_fill(answers == tokenizer.pad_token_id, -100))
    images = [Image.open(world / "pictures" / row["image"]).convert("RGB") for row in rows[:5]]
    assert batch["pixel_values"].equal(pictures(images=images, return_tensors="pt")["pixel_values"])
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}


def test_with_a_known_start_the_decoder_has_its_inputs(write_config):
    pipeline = DataPipeline(write_config(), decoder_start=7)
    pipeline.setup()
    batch = next(iter(pipeline.get_train_dataloader()))
    assert (batch["labels"][:, 0] == 7).all() and (batch["decoder_input_ids"][:, 0] == 7).all()
    mask = batch["decoder_attention_mask"].bool()
    assert batch["labels"][mask].equal(batch["decoder_input_ids"][mask])
    assert (batch["labels"][~mask] == -100).all()
    assert (batch["decoder_input_ids"][~mask] == pipeline.tokenizer.pad_token_id).all() and (~mask).any()


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_are_the_same_for_any_number_of_workers(ready, streamed):
    options = {"use_streaming": streamed, "shuffle_buffer": 4}
    found = [
        epochs(ready(dataloader={"batch_size": 3, "num_workers": workers}, optimization=options))
        for workers in (0, 1, 2)
    ]
    for other in found[1:]:
        assert len(other) == len(found[0]) == 12
        assert all(equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("streamed", [False, True])
def test_every_epoch_has_all_rows_in_another_order(ready, streamed):
    options = {"use_streaming": streamed, "shuffle_buffer": 4}
    sampler = ready(optimization=options).get_train_dataloader().sampler
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(16)) and first != second
    sampler.epoch = 0
    assert list(sampler) == first
    moved = max(abs(place - row) for place, row in enumerate(first))
    assert (moved <= 4) == streamed


def test_only_train_is_shuffled_and_cut_off(ready, world, rows):
    paths = {name: str(world / "pictures/rows.jsonl") for name in ("train", "test")}
    pipeline = ready(data_paths=paths, dataloader={"batch_size": 5, "drop_last": True})
    assert [len(pipeline.get_dataloader(name)) for name in ("train", "test")] == [3, 4]
    texts = [row["question"] for row in rows]
    asked = [batch["input_ids"] for batch in pipeline.get_test_dataloader()]
    told = [pipeline.tokenizer.decode(ids, skip_special_tokens=True) for batch in asked for ids in batch]
    assert [text.replace(" ?", "?") for text in told] == texts


def test_cached_pictures_are_the_same_and_the_limit_holds(ready):
    plain, cached = ready(), ready(optimization={"cache_images": True})
    assert all(equal(a, b) for a, b in zip(epochs(plain), epochs(cached), strict=True))
    cache = cached.encoder.cache
    assert len(cache.kept) == 8 and cache.num_bytes == 8 * 3 * 32 * 32 * 4
    cache.kept.clear()
    cache.num_bytes, cache.max_bytes = 0, 3 * 3 * 32 * 32 * 4
    assert all(equal(a, b) for a, b in zip(epochs(plain), epochs(cached), strict=True))
    assert len(cache.kept) == 3


def test_lengths_are_held_and_filled_up(ready):
    fixed = {"max_question_length": 5, "max_answer_length": 6}
    name = ready().config.tokenizer.name
    batch = next(
        iter(ready(vqa=fixed, tokenizer={"name": name, "padding": "max_length"}).get_train_dataloader())
    )
    assert batch["input_ids"].shape == (4, 5) and batch["labels"].shape == (4, 6)
    strict = ready(vqa=fixed, tokenizer={"name": name, "truncation": False})
    with pytest.raises(SampleError, match=r"rows.jsonl:1: 7 tokens exceed the limit of 5"):
        strict.get_dataset("train")[0]


def test_a_text_is_never_longer_than_its_tokenizer_says(ready, world, rows, tmp_path):
    long = rows[0] | {"question": "what color is it? " * 40, "answer": "red " * 100}
    paths = {"train": str(write_jsonl(tmp_path / "rows.jsonl", [long, rows[0]]))}
    settings = {"data_paths": paths, "image": {"root_dir": str(world / "pictures")}}
    pipeline = ready(**settings)
    assert pipeline.tokenizer.model_max_length == 64
    row = pipeline.get_dataset()[0]
    assert len(row["input_ids"]) == len(row["labels"]) == 64
    name = pipeline.config.tokenizer.name
    strict = ready(**settings, tokenizer={"name": name, "truncation": False}).get_dataset()
    assert equal_rows(strict[1], ready().get_dataset()[0])
    with pytest.raises(SampleError, match="rows.jsonl:1: 202 tokens exceed the limit of 64"):
        strict[0]
    pipeline.tokenizer.model_max_length = int(1e30)  # as transformers has it for a tokenizer without a limit
    free = Encoder(pipeline.config, pipeline.tokenizer, pipeline.image_processor)
    assert (free.max_text, free.max_target) == (None, None)


def test_size_steps_and_raw_pictures_are_followed(ready, world):
    for kind in ("auto", "blip", "clip"):
        sized = {"type": kind, "size": 24}
        assert ready(image_processor=sized).get_dataset("train")[0]["pixel_values"].shape == (3, 24, 24)
    raw = ready(special={"return_raw_image": True}, dataloader={"batch_size": 2, "shuffle": False})
    assert [image.size for image in next(iter(raw.get_train_dataloader()))["raw_image"]] == [(40, 32)] * 2
    steps = {"image": ["centre_square", "grey"], "text": ["drop_last_mark", "strip"]}
    stepped = ready(preprocessing=steps, special={"return_raw_image": True}).get_dataset("train")[0]
    assert stepped["raw_image"].size == (32, 32) and len(set(stepped["raw_image"].getpixel((12, 12)))) == 1
    assert len(stepped["input_ids"]) == len(ready().get_dataset("train")[0]["input_ids"]) - 1


def references(folder) -> dict[str, object]:
    picture("red", "circle").save(folder / "red.png")
    data = (folder / "red.png").read_bytes()
    text = base64.b64encode(data).decode()
    return {
        "relative": "red.png",
        "absolute": str(folder / "red.png"),
        "data URL": f"data:image/png;base64,{text}",
        "base64": text,
    }


@pytest.mark.parametrize("kind", ["relative", "absolute", "data URL", "base64"])
def test_a_picture_is_the_same_however_it_is_named(ready, tmp_path, kind):
    row = {"image": references(tmp_path)[kind], "question": "what color is it?", "answer": "red"}
    data = ready(data_paths={"train": str(write_jsonl(tmp_path / "r.jsonl", [row]))}).get_dataset("train")
    image = Image.open(tmp_path / "red.png").convert("RGB")
    expected = data.encoder.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert data[0]["pixel_values"].equal(expected)


BAD_IMAGES = {
    "https://example.org/a.png": "is an address; nothing is fetched",
    "../secret.png": "'..' in a path of a data set",
    "/etc/hostname": "absolute|leads out",
    "none.png": "none.png",
    "text.png": "text",
    7: "is no picture",
}


@pytest.mark.parametrize("reference", BAD_IMAGES, ids=str)
def test_a_picture_that_is_none_names_its_row(ready, tmp_path, reference):
    root = tmp_path / "root"
    root.mkdir()
    (root / "text.png").write_text("no picture")
    picture("red", "circle").save(tmp_path / "secret.png")
    good = {"image": references(root)["relative"], "question": "what?", "answer": "red"}
    path = write_jsonl(tmp_path / "rows.jsonl", [good, good | {"image": reference}])
    pipeline = ready(data_paths={"train": str(path)}, image={"root_dir": str(root)})
    assert pipeline.get_dataset("train")[0]["input_ids"]
    with pytest.raises(SampleError, match=BAD_IMAGES[reference]) as error:
        pipeline.get_dataset("train")[1]
    assert error.value.where == f"{path}:2"


BAD_ROWS = {
    "no field": (
        {"image": "a", "questions": "b", "answer": "c"},
        "'question' is missing. Did you mean 'questions'",
    ),
    "empty": ({"image": "a", "question": "b", "answer": ""}, "'answer' is empty"),
    "no text": ({"image": "a", "question": ["b"], "answer": "c"}, "'question' must be a text"),
    "no answers": ({"image": "a", "question": "b", "answer": []}, "'answer' has no answer"),
    "no JSON": ("{", "not readable as JSON"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_an_error_or_quarantined_and_replaced(ready, world, rows, tmp_path, name):
    row, message = BAD_ROWS[name]
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows[:3], row, *rows[3:6]])
    paths, root = {"train": str(path)}, {"root_dir": str(world / "pictures")}
    with pytest.raises(SampleError, match=message) as error:
        ready(data_paths=paths, image=root).get_dataset("train")[3]
    assert error.value.where == f"{path}:4"
    bad = {"policy": "quarantine", "file": str(tmp_path / "bad.jsonl")}
    data = ready(data_paths=paths | {"test": str(path)}, image=root, bad_rows=bad).get_dataset("train")
    place = data.policy.next_index(3, 1, len(data))
    assert place != 3 and equal_rows(data[3], data[place]) and equal_rows(data[3], data[place])
    (noted,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert noted["where"] == f"{path}:4"
    with pytest.raises(SampleError, match=message):  # a figure over other rows would be wrong
        ready(data_paths=paths | {"test": str(path)}, image=root, bad_rows=bad).get_dataset("test")[3]


def equal_rows(one: dict, other: dict) -> bool:
    same = one["pixel_values"].equal(other["pixel_values"])
    return same and all(one[key] == other[key] for key in ("input_ids", "labels"))


def test_too_many_bad_rows_end_the_run(ready, world, rows, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows, *["{"] * 8] * 3)
    bad = {"policy": "quarantine", "file": str(tmp_path / "bad.jsonl"), "max_share": 0.2}
    data = ready(
        data_paths={"train": str(path)}, image={"root_dir": str(world / "pictures")}, bad_rows=bad
    ).get_dataset("train")
    with pytest.raises(SampleError, match="of 5. rows cannot be used"):
        for index in range(len(data)):
            data[index]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_over_epochs_and_workers_a_bad_row_is_one_line(ready, world, rows, tmp_path, workers):
    path, file = write_jsonl(tmp_path / "rows.jsonl", [*rows, "{"]), tmp_path / "bad.jsonl"
    settings = {"data_paths": {"train": str(path)}, "image": {"root_dir": str(world / "pictures")}}
    settings |= {"bad_rows": {"policy": "quarantine", "file": str(file)}}
    settings |= {"dataloader": {"batch_size": 2, "num_workers": workers}}
    for _ in range(2):  # a second run finds its line, too
        assert len(epochs(ready(**settings), 3)) == 27
        (line,) = [json.loads(text) for text in file.read_text().splitlines()]
        assert line["where"] == f"{path}:17" and "not readable as JSON" in line["reason"]


def test_a_row_that_is_drawn_several_times_is_one_line(ready, world, rows, tmp_path):
    bad = rows[0] | {"image": "none.png", "answer": "rare"}
    path, file = write_jsonl(tmp_path / "rows.jsonl", [bad, *rows]), tmp_path / "bad.jsonl"
    settings = {"data_paths": {"train": str(path)}, "image": {"root_dir": str(world / "pictures")}}
    settings |= {"bad_rows": {"policy": "quarantine", "file": str(file), "max_share": 0.5}}
    data = ready(**settings, balance={"enabled": True, "label_field": "answer"}).get_dataset()
    assert data.rows.tolist().count(0) == 4 and all(data[index]["labels"] for index in range(len(data)))
    assert len(file.read_text().splitlines()) == 1


def test_a_worker_keeps_its_pictures_for_later_epochs(ready, world, rows, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(world / "pictures", folder)
    loader = ready(
        data_paths={"train": str(folder / "rows.jsonl")},
        dataloader={"batch_size": 4, "num_workers": 1},
        optimization={"cache_images": True},
    ).get_train_dataloader()
    assert len(list(loader)) == 4
    for picture_file in folder.glob("*.png"):
        picture_file.unlink()
    assert len(list(loader)) == 4


def test_a_worker_counts_bad_rows_over_all_epochs(ready, world, rows, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows, *["{"] * 8])
    loader = ready(
        data_paths={"train": str(path)},
        image={"root_dir": str(world / "pictures")},
        bad_rows={"policy": "quarantine", "file": str(tmp_path / "bad.jsonl"), "max_share": 0.2},
        dataloader={"batch_size": 4, "num_workers": 1},
    ).get_train_dataloader()
    assert len(list(loader)) == 6  # fewer rows than a worker draws before it judges
    with pytest.raises(Exception, match=r"\d+ of 5\d rows cannot be used"):
        list(loader)


def test_the_most_frequent_of_several_answers_is_learned(ready, world, rows, tmp_path):
    answers = [{"answer": "a circle"}, {"answer": "red"}, {"answer": "red"}]
    path = write_jsonl(tmp_path / "r.jsonl", [rows[0] | {"answer": answers}])
    data = ready(data_paths={"train": str(path)}, image={"root_dir": str(world / "pictures")})
    example = data.get_dataset("train").example(0)
    assert (example.target, example.answers) == ("red", ("a circle", "red", "red"))


def test_captions_are_read_as_they_are_written(ready, world, tmp_path):
    rows = [{"image": "red_circle.png", "caption": ["a circle", "a red circle"]}]
    rows.append({"image": "blue_square.png", "caption": "a blue square"})
    paths = {"train": str(write_jsonl(tmp_path / "r.jsonl", rows))}
    settings = {"data_paths": paths, "image": {"root_dir": str(world / "pictures")}}
    settings |= {"task_type": "image_captioning", "dataloader": {"batch_size": 3, "shuffle": False}}
    many = ready(**settings, image_captioning={"multiple_captions": True})
    assert [many.get_dataset().example(i).target for i in range(3)] == [
        "a circle",
        "a red circle",
        "a blue square",
    ]
    batch = next(iter(many.get_train_dataloader()))
    mask = batch["attention_mask"].bool()
    assert batch["labels"].equal(batch["input_ids"].masked_fill(~mask, -100)) and (~mask).any()
    assert many.tokenizer.decode(batch["input_ids"][2][1:4]) == "a blue square"
    with pytest.raises(SampleError, match="r.jsonl:1: 2 captions; set image_captioning > multiple_captions"):
        ready(**settings).get_dataset()[0]


def test_pairs_have_labels_where_the_rows_have_them(ready, world, tmp_path):
    rows = [{"image": "red_circle.png", "text": "a red circle", "fits": 1}]
    rows += [{"image": "red_circle.png", "text": "a blue square", "fits": False}, {**rows[0], "fits": 2}]
    paths = {"train": str(write_jsonl(tmp_path / "r.jsonl", rows))}
    settings = {"data_paths": paths, "image": {"root_dir": str(world / "pictures")}}
    settings |= {"task_type": "image_text_retrieval", "dataloader": {"batch_size": 2, "shuffle": False}}
    batch = next(iter(ready(**settings).get_train_dataloader()))
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
    told = ready(**settings, image_text_retrieval={"data_fields": {"label_field": "fits"}})
    assert next(iter(told.get_train_dataloader()))["labels"].tolist() == [1, 0]
    with pytest.raises(SampleError, match="'fits' must be 0 or 1, got 2"):
        told.get_dataset()[2]


def test_the_fingerprint_tells_rows_and_their_order(ready, world, rows, tmp_path):
    first = ready().get_dataset().fingerprint
    assert first == ready(dataloader={"batch_size": 2}).get_dataset().fingerprint
    moved = write_jsonl(tmp_path / "moved.jsonl", rows)
    assert ready(data_paths={"train": str(moved)}).get_dataset().fingerprint == first
    turned = write_jsonl(tmp_path / "turned.jsonl", rows[::-1])
    assert ready(data_paths={"train": str(turned)}).get_dataset().fingerprint != first
