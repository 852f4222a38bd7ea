"""Evaluation: every item has a record, lost ones count as wrong, numbers follow from the records."""

import hashlib
import json
import math
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_world import fresh

from quicksviewer.conversation import Turn
from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval import eval_world, run
from quicksviewer.eval.metrics import by_kind, interval, mean
from quicksviewer.eval.run import answer_batch, evaluate, main, weights_hash
from quicksviewer.eval.task import Item
from quicksviewer.model.builder import load_pretrained_model

LIMIT = 12


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A checkpoint of a fresh model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    loaded = fresh(tiny)
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_pretrained_model(str(folder))


@pytest.fixture(scope="module")
def items(tiny):
    return list(eval_world.samples(str(tiny / "data")))


@pytest.fixture
def data(tiny, tmp_path):
    """A copy of the evaluation's files, to be damaged."""
    (tmp_path / "data/videos").mkdir(parents=True)
    shutil.copytree(tiny / "data/videos/held_out", tmp_path / "data/videos/held_out")
    shutil.copy(tiny / "data/held_out.jsonl", tmp_path / "data")
    return tmp_path / "data"


def arguments(**changes) -> Namespace:
    return Namespace(**{"batch_size": 5, "blind": False, "task": "world", **changes})


def command(folder, data, out, *more) -> list[str]:
    words = ["world", "--model-path", folder, "--data", data, "--output", out, "--device", "cpu", *more]
    return [str(word) for word in words]


# --- the whole command ---


def test_a_run_over_the_held_out_videos(tiny, folder, items, tmp_path, capsys):
    out = tmp_path / "new/place/result.json"
    assert main(command(folder, tiny / "data", out, "--blind")) == 0
    result = json.loads(out.read_text())
    records = result["records"]
    expected = {item.uid: (item.kind, item.prompt, item.answer, item.chance) for item in items}
    told = {r["uid"]: (r["kind"], r["prompt"], r["expected"], r["chance"]) for r in records}
    assert told == expected and len(records) == len(items)
    assert all(r["error"] is None and r["score"] in (0, 1) and r["blind_score"] in (0, 1) for r in records)
    assert all(isinstance(r["answer"], str) and isinstance(r["blind_answer"], str) for r in records)
    whole = result["by_kind"]["overall"]
    assert (
        whole["items"]
        == len(items)
        == sum(r["items"] for k, r in result["by_kind"].items() if k != "overall")
    )
    assert whole["accuracy"] == sum(r["score"] for r in records) / len(records)
    assert whole["blind"] == sum(r["blind_score"] for r in records) / len(records)
    assert result["weights_sha256"] == weights_hash(str(folder)) and result["seed"] == 0
    assert result["decoding"] == {"greedy": True, "max_new_tokens": eval_world.MAX_NEW_TOKENS}
    last = capsys.readouterr().out.splitlines()[-1]
    head, _, kinds = last.partition(" | ")
    assert head == f"accuracy={whole['accuracy']:.3f} chance={whole['chance']:.3f} blind={whole['blind']:.3f}"
    shown = dict(pair.split("=") for pair in kinds.split())
    assert shown == {k: f"{r['accuracy']:.2f}" for k, r in result["by_kind"].items() if k != "overall"}


def test_it_is_the_same_again_and_lies_in_the_checkpoint(tiny, folder):
    words = ["world", "--model-path", str(folder), "--data", str(tiny / "data"), "--limit", "6"]
    results = []
    for _ in range(2):
        assert main([*words, "--device", "cpu"]) == 0
        results.append(json.loads((folder / "eval_world.json").read_text()))
    assert len(results[0]["records"]) == 6 and "blind" not in results[0]["by_kind"]["overall"]
    assert results[0].pop("seconds") >= 0 and results[1].pop("seconds") >= 0 and results[0] == results[1]


@pytest.mark.parametrize("blind", [(), ("--blind",)], ids=["seeing", "blind"])
def test_an_item_without_its_video_is_wrong_and_named(folder, data, tmp_path, capsys, blind):
    missing = data / "videos/held_out/00000.mp4"
    missing.unlink()
    out = tmp_path / "result.json"
    assert main(command(folder, data, out, *blind)) == 0
    result = json.loads(out.read_text())
    lost = [r for r in result["records"] if r["error"]]
    rows = [json.loads(line) for line in (data / "held_out.jsonl").read_text().splitlines()]
    assert {r["uid"] for r in lost} == {row["uid"] for row in rows if row["video"].endswith("00000.mp4")}
    assert 0 < len(lost) < len(rows) == len(result["records"]) == result["by_kind"]["overall"]["items"]
    for record in lost:
        line = 1 + next(i for i, row in enumerate(rows) if row["uid"] == record["uid"])
        assert record["error"].startswith(f"{data}/held_out.jsonl:{line}: {missing}: ")
        assert (record["answer"], record["score"]) == ("", 0)
        assert "blind_answer" not in record or (record["blind_answer"], record["blind_score"]) == ("", 0)
    whole = result["by_kind"]["overall"]
    assert whole["accuracy"] == sum(r["score"] for r in result["records"]) / len(rows)
    assert ("blind" in whole) == bool(blind)
    assert f"{len(lost)} items could not be asked" in capsys.readouterr().out


def test_when_nothing_can_be_asked_the_code_says_so(folder, data, tmp_path):
    shutil.rmtree(data / "videos")
    assert main(command(folder, data, tmp_path / "result.json", "--blind")) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["by_kind"]["overall"]["accuracy"] == 0 and all(r["error"] for r in result["records"])


def test_a_question_that_no_prompt_can_hold_is_a_lost_item(loaded, items):
    bad = replace(items[1], prompt="<visual> and <video>?")
    records = answer_batch(
        loaded, [items[0], bad, items[2]], eval_world, run.MediaCache(loaded.processor), arguments()
    )
    assert [record["error"] is None for record in records] == [True, False, True]
    assert records[1]["error"].startswith(f"{bad.where}: ") and records[1]["score"] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"uid": ', "held_out.jsonl:1"),
        ('{"uid": "a"}', "held_out.jsonl:1.*video"),
        ('{"uid":"a","video":"v","question":"q","answer":"a","kind":"k","answers":[]}', "held_out.jsonl:1"),
        ("", "no questions"),
    ],
)
def test_a_bad_file_of_questions_is_wrong_usage(folder, data, tmp_path, capsys, line, message):
    (data / "held_out.jsonl").write_text(line + "\n")
    assert main(command(folder, data, tmp_path / "result.json")) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": "wrld"}, "Did you mean 'world'"),
        ({"{model}": "nowhere"}, "nowhere is no checkpoint folder"),
        ({"{data}": "nowhere"}, "nowhere/held_out.jsonl"),
        ({"7": "0"}, "0"),
        ({"9": "0"}, "0"),
    ],
)
def test_wrong_usage_is_said_and_coded(tiny, folder, tmp_path, capsys, change, message):
    words = command("{model}", "{data}", tmp_path / "result.json", "--limit", "7", "--batch-size", "9")
    places = {"{model}": str(folder), "{data}": str(tiny / "data")}
    try:
        code = main([change.get(word, places.get(word, word)) for word in words])
    except SystemExit as stop:  # of the argument parser; quicksviewer.__main__ takes its code
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err


def test_brackets_in_names_are_no_markup(tiny, folder, tmp_path, capsys):
    out = tmp_path / "[/b]" / "[red]result.json"
    assert main(command(folder, tiny / "data", out, "--limit", "1")) == 0
    assert out.is_file() and str(out) in capsys.readouterr().out.replace("\n", "")


# --- answers ---


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_answers_are_those_of_asking_one_by_one(loaded, items, batch_size):
    chosen = [items[0], *items[-LIMIT:]]
    records = evaluate(loaded, chosen, eval_world, arguments(batch_size=batch_size))
    assert [record["uid"] for record in records] == [item.uid for item in chosen]
    processor, tokenizer = loaded.processor, loaded.tokenizer
    for record, item in zip(records, chosen, strict=True):
        turns = [Turn("user", f"<video>\n{item.prompt}")]
        video = processor.load_video(item.video)
        batch = processor.batch([processor.encode_turns(turns, [video], generation=True)])
        out = loaded.model.generate(**batch, max_new_tokens=eval_world.MAX_NEW_TOKENS, do_sample=False)
        new = out[0, batch["input_ids"].shape[1] :]
        assert record["answer"] == tokenizer.decode(new, skip_special_tokens=True).strip()
        assert record["score"] == (record["answer"].casefold() == item.answer.casefold())


def test_each_video_is_decoded_once(loaded, items):
    paths = []
    watched = SimpleNamespace(load_video=lambda path: paths.append(path) or loaded.processor.load_video(path))
    media = run.MediaCache(watched)
    ordered = sorted(items, key=lambda item: item.video)
    mediums = [media.load(item.video) for item in ordered]
    assert paths == sorted({item.video for item in items}) and len(mediums) == len(items)


def test_blind_is_the_same_question_with_noise_for_frames(loaded, items, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "generate", lambda _, rows, task: asked.append(rows) or [""] * len(rows))
    media = run.MediaCache(loaded.processor)
    answer_batch(loaded, items[:3], eval_world, media, arguments(blind=True))
    answer_batch(loaded, items[:3], eval_world, media, arguments(blind=True))
    seeing, blind, _, again = asked
    for item, seen, noise, repeated in zip(items, seeing, blind, again, strict=False):
        assert {k: v for k, v in seen.items() if k != "pixel_values"}.keys() == noise.keys() - {
            "pixel_values"
        }
        assert noise["input_ids"] == seen["input_ids"] and noise["frame_times"] is seen["frame_times"]
        assert torch.equal(seen["pixel_values"], loaded.processor.load_video(item.video).pixels)
        pixels = noise["pixel_values"]
        assert pixels.shape == seen["pixel_values"].shape and pixels.dtype == torch.uint8
        assert torch.equal(pixels, repeated["pixel_values"]) and abs(pixels.float().mean() - 127.5) < 2
        assert pixels.float().std() == pytest.approx(73.9, abs=1)  # of the uniform distribution
    assert not torch.equal(blind[0]["pixel_values"], blind[1]["pixel_values"])


def test_no_default_of_the_checkpoint_creeps_into_greedy_answers(loaded, items):
    plain = evaluate(loaded, items[:LIMIT], eval_world, arguments())
    settings = loaded.model.generation_config
    before = settings.to_dict()
    try:  # as the generation_config.json of a downloaded chat model has it
        settings.update(repetition_penalty=5.0, temperature=0.7, top_k=3, do_sample=True, num_beams=2)
        assert evaluate(loaded, items[:LIMIT], eval_world, arguments()) == plain
    finally:
        settings.update(**before)


# --- scores ---


@pytest.mark.parametrize(
    ("answer", "score"), [("red", 1), (" Red\n", 1), ("RED", 1), ("", 0), ("red circle", 0), ("red.", 0)]
)
def test_an_answer_counts_when_it_is_the_expected_one(answer, score):
    item = Item(uid="a", video="v", prompt="p", answer="red", kind="first", chance=0.5, where="f:1")
    assert eval_world.score(item, answer) == score


def test_items_are_the_rows_of_the_file(tiny, items):
    rows = [json.loads(line) for line in (tiny / "data/held_out.jsonl").read_text().splitlines()]
    for number, (row, item) in enumerate(zip(rows, items, strict=True), start=1):
        assert (item.uid, item.prompt, item.answer) == (row["uid"], row["question"], row["answer"])
        assert item.chance * len(row["answers"]) == 1 and item.where.endswith(f"held_out.jsonl:{number}")
        assert item.video == str(tiny / "data" / row["video"])


def test_a_missing_key_is_named_with_its_line(data):
    row = json.loads((data / "held_out.jsonl").read_text().splitlines()[0])
    del row["answer"]
    (data / "held_out.jsonl").write_text(json.dumps(row))
    with pytest.raises(SampleError, match="held_out.jsonl:1: .*answer"):
        list(eval_world.samples(str(data)))


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (0, 10), (3, 10), (50, 100), (100, 100)])
def test_the_interval_is_wilsons(right, total):
    """Its ends are the p for which the observed share lies 1.96 standard errors away."""
    low, high = interval([1.0] * right + [0.0] * (total - right))
    share = right / total
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / total))
    assert -1e-8 < low - 1e-9 < share < high + 1e-9 < 1 + 1e-8


def test_kinds_sum_to_the_whole():
    records = [
        {"kind": kind, "score": float(place % 3 == 0), "chance": chance, "blind_score": float(place % 4 == 0)}
        for place, (kind, chance) in enumerate([("a", 0.5)] * 5 + [("b", 0.25)] * 7)
    ]
    table = by_kind(records)
    assert set(table) == {"a", "b", "overall"}
    for key in ("accuracy", "chance", "blind"):
        assert table["overall"][key] == pytest.approx((5 * table["a"][key] + 7 * table["b"][key]) / 12)
    for kind, rows in (("a", records[:5]), ("b", records[5:]), ("overall", records)):
        scores = [row["score"] for row in rows]
        assert (table[kind]["items"], table[kind]["accuracy"]) == (len(rows), sum(scores) / len(rows))
        assert (table[kind]["low"], table[kind]["high"]) == interval(scores)


def test_nothing_has_no_mean():
    assert math.isnan(mean([])) and all(map(math.isnan, interval([])))


def test_the_hash_is_that_of_the_weight_files_in_order(tmp_path):
    for name, content in (("b.safetensors", b"2"), ("a.safetensors", b"1"), ("c.json", b"3")):
        (tmp_path / name).write_bytes(content)
    assert weights_hash(str(tmp_path)) == hashlib.sha256(b"12").hexdigest()
