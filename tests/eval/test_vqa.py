"""VQA accuracy by the rules of the data set, blind guesses, and a whole evaluation with its page."""

import json
from html.parser import HTMLParser

import pytest
import yaml
from picture_world import make_world, write_jsonl

from quicksviewer.data.pipeline import DataPipeline
from quicksviewer.eval.vqa import majority, normalise, type_of, vqa_accuracy
from quicksviewer.eval.vqa_run import evaluate, main

SAME = [
    ("Yes.", "yes"),
    ("  the  RED one", "red 1"),
    ("an apple, a day", "apple day"),
    ("none", "0"),
    ("1,000", "1000"),
    ("2.5", "2.5"),
    ("U.S.A.", "usa"),
    ("black-and-white", "black and white"),
    ("dont", "don't"),
    ("it's", "it's"),
    ("well", "well"),
    ("(left)", "left"),
    ("what?!", "what"),
    ("a", "a"),
]


@pytest.mark.parametrize("answer, plain", SAME)
def test_answers_are_compared_without_what_does_not_matter(answer, plain):
    assert normalise(answer) == plain == normalise(plain)


@pytest.mark.parametrize(
    "answer, references, score",
    [
        ("Red.", ["red"], 1.0),
        ("red", ["blue"], 0.0),
        ("", ["red"], 0.0),
        # Ten people, n of whom agree: (n * min((n-1)/3, 1) + (10-n) * min(n/3, 1)) / 10, by hand.
        ("red", ["red"] * 1 + ["blue"] * 9, 0.3),
        ("red", ["red"] * 2 + ["blue"] * 8, 0.6),
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("two", ["2", "two", "3"], 2 / 3),  # each of the two finds half of the others on its side
    ],
)
def test_an_answer_is_as_right_as_people_agree(answer, references, score):
    assert vqa_accuracy(answer, references) == pytest.approx(score)


def test_without_references_nothing_is_right_or_wrong():
    with pytest.raises(ValueError, match="there are none"):
        vqa_accuracy("red", [])


def test_blind_guesses_are_the_most_frequent_answers():
    assert majority([("a", "Yes"), ("a", "no"), ("a", "yes"), ("b", "2")]) == {"a": "yes", "b": "2"}
    assert [type_of(answers) for answers in (["Yes", "no", "yes"], ["three"], ["red"])] == [
        "yes_no",
        "number",
        "other",
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Train as it is; in test a row whose picture is damaged, one that is no row, and answers by kind."""
    root = make_world(tmp_path_factory.mktemp("vqa") / "world")
    rows = [json.loads(line) for line in (root / "pictures/rows.jsonl").read_text().splitlines()]
    rows = [row | {"kind": "colour" if "color" in row["question"] else "shape"} for row in rows]
    write_jsonl(root / "pictures/train.jsonl", rows)
    (root / "pictures/broken.png").write_bytes((root / "pictures/red_circle.png").read_bytes()[:60])
    escaped = rows[1] | {"question": "<script>which</script> shape?"}
    write_jsonl(root / "pictures/test.jsonl", [*rows[:6], escaped, rows[0] | {"image": "broken.png"}, "{"])
    config = {
        "task_type": "vqa",
        "data_paths": {name: str(root / f"pictures/{name}.jsonl") for name in ("train", "test")},
        "tokenizer": {"name": str(root / "blip")},
        "logging": {"log_statistics": False},
    }
    (root / "pipeline.yaml").write_text(yaml.safe_dump(config))
    return root


class Oracle:
    """Stands for a model that looks up its answers: the right one for the first rows, else a wrong one."""

    device = "cpu"

    def __init__(self, answers: list[str], tokenizer):
        self.answers, self.tokenizer = iter(answers), tokenizer

    def eval(self):
        return self

    def generate(self, input_ids, **_):
        texts = [next(self.answers) for _ in input_ids]
        return self.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]


def test_scores_are_those_of_the_answers(world):
    pipeline = DataPipeline(world / "pipeline.yaml")
    pipeline.setup()
    answers = ["red", "square", "green", "a circle", "green", "a square", "a square"]
    result = evaluate(Oracle(answers, pipeline.tokenizer), pipeline, "test", batch_size=2)
    scores = [record["score"] for record in result["records"]]
    assert scores == [1, 1, 0, 1, 1, 1, 1, 0, 0]
    rows = result["by_kind"]
    assert rows["overall"]["accuracy"] == pytest.approx(6 / 9) and rows["overall"]["items"] == 9
    assert rows["colour"]["accuracy"] == 0.5 and rows["shape"]["accuracy"] == 1.0
    # The most frequent colour of train is the first one, red; of the shapes, a square.
    assert rows["colour"]["chance"] == pytest.approx(3 / 4) and rows["shape"]["chance"] == pytest.approx(
        3 / 4
    )
    assert result["blind_by_question"] == pytest.approx(sum(r["chance"] for r in result["records"]) / 9)
    assert "broken.png" in result["records"][7]["error"] and "test.jsonl:9" in result["records"][8]["error"]


class Page(HTMLParser):
    """Tags, texts and sources of pictures of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.pictures, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_data(self, data):
        self.texts.append(data)


def test_a_checkpoint_is_measured_and_its_mistakes_are_shown(world, tmp_path, capsys):
    words = ["--model-path", str(world / "blip"), "--config", str(world / "pipeline.yaml"), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["records"]) == 9 and len(result["weights"]) == 64
    again = [vqa_accuracy(r["answer"], r["expected"]) if r["expected"] else 0.0 for r in result["records"]]
    assert [r["score"] for r in result["records"]] == again
    assert f"accuracy={result['by_kind']['overall']['accuracy']:.3f}" in capsys.readouterr().out
    page = Page((tmp_path / "out.html").read_text())
    assert len(page.pictures) == 7 and all(src.startswith("data:image/png;base64,") for src in page.pictures)
    assert "script" not in page.tags and "link" not in page.tags
    assert any("<script>which</script> shape?" in text for text in page.texts)
    wrong = sum(record["score"] < 1 for record in result["records"])
    assert f"Mistakes: {wrong} of 9" in page.texts


def test_without_a_train_nothing_is_guessed_and_nothing_is_lost(world, tmp_path, capsys):
    config = yaml.safe_load((world / "pipeline.yaml").read_text())
    del config["data_paths"]["train"]
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(config))
    found = {}
    for name, path in {"with": world / "pipeline.yaml", "without": tmp_path / "alone.yaml"}.items():
        words = ["--model-path", str(world / "blip"), "--config", str(path), "--device", "cpu"]
        assert main([*words, "--out", str(tmp_path / f"{name}.json")]) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("guessing blind by the words of the question: -;")
    texts = Page((tmp_path / "without.html").read_text()).texts
    assert texts.count("-") == len(found["without"]["by_kind"])  # the last cell of every row
    assert found["without"]["blind_by_question"] is None
    for name, result in found.items():
        for row in [*result["records"], *result["by_kind"].values()]:
            assert (row.pop("chance") is None) == (name == "without")
    assert found["with"]["records"] == found["without"]["records"]
    assert found["with"]["by_kind"] == found["without"]["by_kind"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--split", "validation"], "there is no split 'validation'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model-path", "nowhere"], "nowhere"),
    ],
)
def test_wrong_usage_is_told(world, capsys, flags, message):
    words = ["--model-path", str(world / "blip"), "--config", str(world / "pipeline.yaml"), "--device", "cpu"]
    assert main([*words, *flags]) == 2
    assert message in capsys.readouterr().err
