"""lmms-eval runs a local task with our tiny model and finds the score of our harness.

It needs an environment of its own: the folder in $LMMS_EVAL_VENV, else one is made, which takes minutes.
"""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from quicksviewer.conversation import Turn
from quicksviewer.eval import lmms_eval_adapter as adapter
from quicksviewer.eval.lmms_eval_adapter import Answers, cut, generation
from quicksviewer.eval.run import main

ROOT = Path(__file__).resolve().parents[2]
YAML = """
task: our_world
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.video_of
doc_to_text: !function utils.text_of
doc_to_target: answer
process_results: !function utils.score
generation_kwargs: {{max_new_tokens: 8, do_sample: false, temperature: 0, num_beams: 1}}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
UTILS = """
def video_of(doc):
    return [{folder!r} + "/" + doc["video"]]

def text_of(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def score(doc, results):
    return {{"acc": float(results[0].strip().casefold() == doc["answer"].casefold())}}
"""


def write_task(folder: Path, data: Path) -> None:
    (folder / "our_world.yaml").write_text(YAML.format(rows=data / "held_out.jsonl"))
    (folder / "utils.py").write_text(UTILS.format(folder=str(data)))


def write_entry_point(folder: Path) -> None:
    """As our package declares it, for an environment that has the package on its path only."""
    info = folder / "quicksviewer_lmms-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quicksviewer-lmms\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[lmms_eval.models]\nquicksviewer = quicksviewer.eval.lmms_eval_adapter:manifest\n"
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment with lmms-eval."""
    if known := os.environ.get("LMMS_EVAL_VENV"):
        return Path(known) / "bin/python"
    folder = tmp_path_factory.mktemp("lmms") / "venv"
    script = ["bash", str(ROOT / "scripts/lmms_eval_env.sh"), str(folder)]
    done = subprocess.run(script, env={**os.environ, "WITHOUT_PACKAGE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "bin/python"


@pytest.mark.slow
def test_lmms_eval_finds_the_score_of_our_harness(python, tiny, learnt, tmp_path):
    data = tiny / "data"
    words = [
        "world",
        "--model-path",
        learnt,
        "--data",
        data,
        "--output",
        tmp_path / "ours.json",
        "--device",
        "cpu",
    ]
    assert main(list(map(str, words))) == 0
    ours = json.loads((tmp_path / "ours.json").read_text())
    write_entry_point(tmp_path / "path")
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", data)
    command = [python, "-m", "lmms_eval", "--model", "quicksviewer", "--tasks", "our_world", "--log_samples"]
    command += ["--model_args", f"pretrained={learnt}", "--device", "cpu", "--batch_size", "8"]
    command += ["--include_path", tmp_path / "tasks", "--output_path", tmp_path / "theirs"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    paths = {"PYTHONPATH": f"{ROOT}:{tmp_path / 'path'}"}
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **offline, **paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (results,) = (tmp_path / "theirs").rglob("*_results.json")
    found = json.loads(results.read_text())["results"]["our_world"]["acc,none"]
    accuracy = ours["by_kind"]["overall"]["accuracy"]
    assert found == pytest.approx(accuracy) and 0 < accuracy < 1
    (samples,) = (tmp_path / "theirs").rglob("*samples_our_world.jsonl")
    uids = [json.loads(line)["uid"] for line in (data / "held_out.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    theirs = {uids[sample["doc_id"]]: sample["filtered_resps"] for sample in found}
    assert theirs == {record["uid"]: record["answers"][0] for record in ours["records"]}


# --- the adapter by itself


@pytest.fixture(scope="module")
def model(learnt):
    return Answers(str(learnt), "cpu", 4, max_frames=8)


def request(text, visuals, model, **settings):
    """A request as lmms-eval makes it; its documents are numbered lists of media."""
    docs = model.__dict__.setdefault("task_dict", {}).setdefault("t", {}).setdefault("test", [])
    docs.append(visuals)
    return SimpleNamespace(args=(text, settings, lambda doc: doc, len(docs) - 1, "t", "test"))


def test_requests_are_answered_in_their_order(model, tiny):
    clips = sorted((tiny / "data/videos/held_out").glob("*.mp4"))
    picture = Image.new("RGB", (40, 30), (200, 0, 0))
    asked = [
        request("Which is last?", [str(clips[1])], model, max_new_tokens=4),
        request("Which is first?", [picture, picture], model, max_new_tokens=4),
        request("Which is first?", [str(clips[0])], model, max_new_tokens=8, until=["\n"]),
        request("Hello", [], model, max_new_tokens=4),
        request("Which is first?", [str(clips[0].with_name("gone.mp4"))], model, max_new_tokens=4),
    ]
    together = model.generate_until(asked)
    assert together == [model.generate_until([one])[0] for one in asked] and together[4] == ""
    loaded = model.loaded
    media = [loaded.processor.load_image(picture)] * 2
    turns = [Turn("user", "<image>\n<image>\nWhich is first?")]
    batch = loaded.processor.batch([loaded.processor.encode_turns(turns, media, generation=True)])
    out = loaded.model.generate(**batch, max_new_tokens=4, do_sample=False)
    new = out[0, batch["input_ids"].shape[1] :]
    assert together[1] == loaded.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_what_it_cannot_do_is_refused(model, learnt):
    with pytest.raises(ValueError, match="answers are greedy here"):
        generation({"do_sample": True})
    with pytest.raises(ValueError, match="generation_kwargs .'magic'"):
        generation({"magic": 1})
    with pytest.raises(ValueError, match="one video, or images; got 2"):
        model.generate_until([request("q", ["a.mp4", "b.mp4"], model)])
    with pytest.raises(ValueError, match="unknown model_args .'fsp': 1"):
        Answers(str(learnt), "cpu", 1, fsp=1)
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            method([])


def test_answers_end_where_the_task_says():
    assert cut("one\ntwo\n\nthree", ["\n\n", "two"]) == "one" and cut(" one ", ["", "x"]) == "one"
    assert generation({"until": "x"}) == {"until": ["x"], "max_new_tokens": adapter.DEFAULT_NEW_TOKENS}


def test_without_lmms_eval_it_says_what_to_do():
    with pytest.raises(ModuleNotFoundError, match="scripts/lmms_eval_env.sh"):
        adapter.manifest()
    with pytest.raises(ModuleNotFoundError, match="lmms_eval_env.sh"):
        _ = adapter.Quicksviewer
    assert not hasattr(adapter, "Anything")
