"""Evaluation: every item has a record, lost ones count as wrong, numbers follow from the records."""

import json
import re
import shutil

import pytest
import torch
from miniatures import MINIATURES, videomme

from quicksviewer.eval.eval_world import samples
from quicksviewer.eval.identity import code_facts, weights_hash
from quicksviewer.eval.metrics import mean
from quicksviewer.eval.run import main
from quicksviewer.model.processor import QuicksviewerProcessor
from quicksviewer.utils.frame_plan import FramePlan

LIMIT = 6


@pytest.fixture(scope="module")
def items(tiny):
    return list(samples(tiny / "data"))


@pytest.fixture
def data(tiny, tmp_path):
    """A copy of the evaluation's files, to be damaged."""
    (tmp_path / "data/videos").mkdir(parents=True)
    shutil.copytree(tiny / "data/videos/held_out", tmp_path / "data/videos/held_out")
    shutil.copy(tiny / "data/held_out.jsonl", tmp_path / "data")
    return tmp_path / "data"


def command(folder, data, out, *more) -> list[str]:
    words = ["world", "--model-path", folder, "--data", data, "--output", out, "--device", "cpu", *more]
    return [str(word) for word in words]


# --- the whole command


def test_a_run_over_the_held_out_videos(tiny, folder, items, tmp_path, capsys):
    out = tmp_path / "new/place/result.json"
    assert main(command(folder, tiny / "data", out, "--blind", "--batch-size", "5")) == 0
    result = json.loads(out.read_text())
    records = result["records"]
    expected = {item.uid: (item.kind, list(item.questions), item.answer, item.chance) for item in items}
    assert {r["uid"]: (r["kind"], r["prompts"], r["expected"], r["chance"]) for r in records} == expected
    assert len(records) == len(items) and all(r["error"] is None for r in records)
    for record in records:
        for prefix in ("", "blind_"):
            (answer,) = record[f"{prefix}answers"]
            right = answer.casefold() == record["expected"].casefold()
            assert record[f"{prefix}scores"] == {"accuracy": float(right)}
    whole = result["by_kind"]["overall"]
    others = [r["items"] for k, r in result["by_kind"].items() if k != "overall"]
    assert whole["items"] == len(items) == sum(others)
    assert whole["accuracy"] == mean([r["scores"]["accuracy"] for r in records])
    assert whole["blind"] == mean([r["blind_scores"]["accuracy"] for r in records])
    last = capsys.readouterr().out.splitlines()[-1]
    head, _, kinds = last.partition(" | ")
    assert head == f"accuracy={whole['accuracy']:.3f} chance={whole['chance']:.3f} blind={whole['blind']:.3f}"
    shown = dict(pair.split("=") for pair in kinds.split())
    assert shown == {k: f"{r['accuracy']:.2f}" for k, r in result["by_kind"].items() if k != "overall"}
    check_origin(result, folder, tiny, items)
    assert sorted(p.name for p in out.parent.iterdir()) == ["result.json", "result.timings.json"]
    assert json.loads((out.parent / "result.timings.json").read_text())["seconds"]["generate"] > 0


def check_origin(result, folder, tiny, items):
    """Everything that is needed to do it again."""
    assert result["model"] == str(folder) and result["weights_sha256"] == weights_hash(folder)
    assert (result["task"], result["seed"], result["batch_size"], result["blind"]) == ("world", 0, 5, True)
    assert result["decoding"].items() >= {"greedy": True, "max_new_tokens": 8, "do_sample": False}.items()
    assert (result["prompt"], result["template"], result["data"]) == (
        "{question}",
        "plain",
        str(tiny / "data"),
    )
    assert result["media"]["max_frames"] == 16 and result["media"]["decoder"] == "av"
    assert result["code"] == [code_facts()] and result["torch"] == torch.__version__
    clips = {item.clip for item in items}
    assert set(result["plans"]) == clips and result["frame_policies"] == {"rate": len(clips)}
    plans = [FramePlan.from_json(json.dumps(plan)) for plan in result["plans"].values()]
    assert result["decoders"] == {f"{plans[0].decoder} {plans[0].decoder_version}": len(clips)}
    assert all(plan.fps == 1.0 and plan.max_frames == 16 and plan.decoder == "av" for plan in plans)


def test_it_is_the_same_again_and_lies_in_the_checkpoint(tiny, folder):
    words = ["world", "--model-path", str(folder), "--data", str(tiny / "data"), "--limit", "6"]
    results = []
    for ahead in ("0", "3"):
        assert main([*words, "--device", "cpu", "--decode-ahead", ahead]) == 0
        results.append(json.loads((folder / "eval_world.json").read_text()))
    assert len(results[0]["records"]) == 6 and "blind" not in results[0]["by_kind"]["overall"]
    assert [r.pop("code") for r in results] and results[0] == results[1]
    assert not (folder / "eval_world.json.parts").exists()


@pytest.mark.parametrize("name", sorted(set(MINIATURES) - {"world"}))
def test_every_task_runs_over_its_published_files(tiny, learnt, tmp_path, name):
    """Real clips through the real model; the plan shows what was looked at."""
    MINIATURES[name](tmp_path / "data", tiny)
    words = [name, "--model-path", str(learnt), "--data", str(tmp_path / "data"), "--device", "cpu"]
    out, open_ = tmp_path / "out.json", name.startswith(("video_", "videochat", "activity", "nextqa_open"))
    no_judge, limit = ["--no-judge"] if open_ else [], "1" if name.startswith("videochat") else "7"
    assert main([*words, "--output", str(out), "--limit", limit, "--frames", "3", *no_judge]) == 0
    result = json.loads(out.read_text())
    assert all(r["error"] is None and len(r["answers"]) == len(r["prompts"]) for r in result["records"])
    for plan in result["plans"].values():
        assert 1 <= len(plan["times"]) <= 3 and all(plan["start"] <= t < plan["end"] for t in plan["times"])
    headline = result["by_kind"]["overall"][result["metric"]]
    assert headline is None if open_ else 0 <= headline <= 1


def test_an_accuracy_by_hand_through_the_whole_command(tiny, learnt, tmp_path, capsys):
    """The model says "C", "The answer is (A).", "A man"; C, A and B are right."""
    videomme(tmp_path / "data", tiny)
    words = ["videomme", "--model-path", str(learnt), "--data", str(tmp_path / "data"), "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert {r["uid"]: (r["answers"], r["read"]) for r in result["records"]} == {
        "001-1": (["C"], "C"),
        "001-2": (["The answer is (A)."], "A"),
        "601-1": (["A man"], None),
    }
    found = {kind: row["accuracy"] for kind, row in result["by_kind"].items()}
    assert found == {"short": 1.0, "long": 0.0, "overall": 2 / 3} and result["macro"] == 0.5
    assert result["by_kind"]["overall"]["others"]["strict"]["mean"] == 1 / 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "accuracy=0.667 chance=0.250 strict=0.333 | long=0.00 short=1.00"


def test_one_command_compares_numbers_of_frames(tiny, folder, tmp_path, capsys):
    out = tmp_path / "matrix.json"
    assert main(command(folder, tiny / "data", out, "--limit", "4", "--frames", "2", "5", "420")) == 0
    matrix = json.loads(out.read_text())
    assert list(matrix["frames"]) == ["2", "5", "420"]
    policies = [budget["frame_policies"] for budget in matrix["frames"].values()]
    assert policies == [{"even": 2}, {"even": 2}, {"rate": 2}]
    for frames, budget in matrix["frames"].items():
        alone = tmp_path / f"alone_{frames}.json"
        assert main(command(folder, tiny / "data", alone, "--limit", "4", "--frames", frames)) == 0
        single, of_matrix = (json.loads(path.read_text()) for path in (alone, tmp_path / budget["result"]))
        assert single.pop("code") and of_matrix.pop("code") and single == of_matrix
        assert budget["by_kind"] == single["by_kind"]
        longest = max(len(plan["times"]) for plan in single["plans"].values())
        assert longest == min(int(frames), longest) and (frames == "420") == (longest > 5)
    assert "accuracy by frames: 2=0." in capsys.readouterr().out


@pytest.mark.parametrize("most", [1, 3])
def test_answers_are_as_long_as_they_may_be(tiny, learnt, tmp_path, most):
    """The model knows "The answer is (A)." by heart; its first tokens are what is left of it."""
    videomme(tmp_path / "data", tiny)
    words = ["videomme", "--model-path", str(learnt), "--data", str(tmp_path / "data"), "--device", "cpu"]
    out = tmp_path / "out.json"
    assert main([*words, "--output", str(out), "--max-new-tokens", str(most)]) == 0
    result = json.loads(out.read_text())
    (answer,) = next(record["answers"] for record in result["records"] if record["uid"] == "001-2")
    tokenizer = QuicksviewerProcessor.from_pretrained(learnt).tokenizer
    ids = tokenizer("The answer is (A).", add_special_tokens=False)["input_ids"]
    assert result["decoding"]["max_new_tokens"] == most and answer == tokenizer.decode(ids[:most]).strip()


def test_a_prompt_of_a_file_is_asked_and_recorded(tiny, folder, tmp_path):
    text = "Look: {question}\nThink {carefully} in {}."
    (tmp_path / "prompt.txt").write_text(text)
    out = tmp_path / "out.json"
    words = ["--limit", "2", "--prompt", str(tmp_path / "prompt.txt")]
    assert main(command(folder, tiny / "data", out, *words)) == 0
    result = json.loads(out.read_text())
    asked = {item.uid: text.replace("{question}", item.questions[0]) for item in samples(tiny / "data")}
    assert result["prompt"] == text and all(r["prompts"] == [asked[r["uid"]]] for r in result["records"])


# --- what is lost


@pytest.mark.parametrize("blind", [(), ("--blind",)], ids=["seeing", "blind"])
def test_an_item_without_its_video_is_wrong_and_named(folder, data, tmp_path, capsys, blind):
    """E7: nothing stands in for a broken video; its items are counted."""
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
        for prefix in ("", "blind_") if blind else ("",):
            assert (record[f"{prefix}answers"], record[f"{prefix}scores"]) == ([], {"accuracy": 0.0})
    whole = result["by_kind"]["overall"]
    assert whole["accuracy"] == sum(r["scores"]["accuracy"] for r in result["records"]) / len(rows)
    assert (whole["failed"], "blind" in whole) == (len(lost), bool(blind))
    assert f"{len(lost)} items could not be asked" in capsys.readouterr().out


def test_when_nothing_can_be_asked_the_code_says_so(folder, data, tmp_path):
    shutil.rmtree(data / "videos")
    assert main(command(folder, data, tmp_path / "result.json", "--blind")) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["by_kind"]["overall"]["accuracy"] == 0 and all(r["error"] for r in result["records"])


# --- wrong usage


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
        ({"world": "videomme", "--data": "--videos"}, "--data must name the folder of videomme"),
        ({"world": "mlvu"}, "none of json/1_plotQA.json"),
        ({"world": "activitynetqa"}, "give --judge-url and --judge-model"),
        ({"{model}": "nowhere"}, "nowhere is no checkpoint folder"),
        ({"{data}": "nowhere"}, "nowhere/held_out.jsonl"),
        ({"7": "0"}, "0"),
        ({"9": "0"}, "0"),
        ({"--seed": "--fps"}, "bad fps=0"),
        ({"--seed": "--processes", "0": "-1"}, "must be at least 0"),
        ({"--seed": "--decoder", "0": "avi"}, "Did you mean 'av'"),
    ],
)
def test_wrong_usage_is_said_and_coded(tiny, folder, tmp_path, capsys, change, message):
    words = command("{model}", "{data}", tmp_path / "result.json", "--limit", "7", "--batch-size", "9")
    words += ["--seed", "0"]
    places = {"{model}": str(folder), "{data}": str(tiny / "data")}
    try:
        code = main([change.get(word, places.get(word, word)) for word in words])
    except SystemExit as stop:  # of the argument parser; quicksviewer.__main__ takes its code
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--no-judge"], "world has no use for a judge"),
        (["--judge-url", "http://127.0.0.1:1/v1", "--judge-model", "m"], "world has no use for a judge"),
        (["--frames", "8", "8"], "names a number twice"),
        (["--prompt", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_flags_that_do_nothing_are_refused(tiny, folder, tmp_path, capsys, more, message):
    assert main(command(folder, tiny / "data", tmp_path / "result.json", *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("world", "What?", "prompt.txt: expected {question} in the prompt"),
        ("world", "", "prompt.txt: expected {question} in the prompt"),
        ("world", "Look.\n{questions}", "prompt.txt:2: {questions} is no field; did you mean {question}?"),
        ("world", "{Question}", "prompt.txt:1: {Question} is no field; did you mean {question}?"),
        ("world", "{question}\n{ question }", "prompt.txt:2: { question } is no field"),
        ("world", "{question} {subtitle}", "{subtitle} is no field; did you mean {subtitles}?"),
        ("videomme", "{question}", "prompt.txt: expected {options} in the prompt"),
        ("videomme", "Which?", "prompt.txt: expected {question} and {options} in the prompt"),
        ("videomme", "{question} {option}", "{option} is no field; did you mean {options}?"),
    ],
)
def test_a_prompt_that_does_not_ask_is_refused(tiny, folder, tmp_path, capsys, task, text, message):
    data, prompt = tiny / "data" if task == "world" else tmp_path / "data", tmp_path / "prompt.txt"
    if task == "videomme":
        videomme(data, tiny)
    prompt.write_text(text)
    _, *words = command(folder, data, tmp_path / "result.json", "--prompt", prompt)
    assert main([task, *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("result*"))


def test_brackets_in_names_are_no_markup(tiny, folder, tmp_path, capsys):
    out = tmp_path / "[/b]" / "[red]result.json"
    assert main(command(folder, tiny / "data", out, "--limit", "1")) == 0
    assert out.is_file() and str(out) in capsys.readouterr().out.replace("\n", "")


def test_two_items_of_one_name_are_refused(folder, data, tmp_path, capsys):
    lines = (data / "held_out.jsonl").read_text().splitlines()
    (data / "held_out.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    assert main(command(folder, data, tmp_path / "result.json")) == 2
    assert "are both called" in capsys.readouterr().err
