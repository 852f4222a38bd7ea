"""`quicksviewer data check`: exit codes, reports, the ledger that training then reads."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from bad_files import bad_rows, odd_rows, row, write_files
from tiny_runs import logs_of, run, write_recipe

from quicksviewer.__main__ import main
from quicksviewer.data.ledger import Ledger

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x07 \ud800"
SKIPPED = {"permission"}
"""Kinds that need a process without the rights of root; see test_bad_rows.py."""


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """A recipe whose rows are good ones, odd ones, hostile ones, and bad ones of every kind."""
    folder = tmp_path_factory.mktemp("check")
    write_files(folder)
    good = [row(f"good {n}", video="good.mp4") if n % 4 == 0 else row(f"good {n}") for n in range(24)]
    hostile = [row(HOSTILE, HOSTILE[:-2], "red", source=HOSTILE), row("shout", HOSTILE[:-2], HOSTILE[:-2])]
    bad = [one for kind, one in bad_rows().items() if kind not in SKIPPED]
    bad.append(row("no letter", HOSTILE))
    path = write_recipe(tiny, folder, [], model_max_length=300, output_dir=str(folder / "out"))
    rows = [*good, *odd_rows().values(), *hostile, *bad]
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    registry = {"rows": {"path": str(folder / "rows.jsonl"), "media_root": str(folder)}}
    (folder / "registry.yaml").write_text(yaml.safe_dump(registry))
    settings = yaml.safe_load(path.read_text())
    settings["shared"] |= {"data_path": "rows", "data_registry": str(folder / "registry.yaml")}
    path.write_text(yaml.safe_dump(settings))
    return path, len(rows), len(bad)


def check(recipe, out, *words, workers=0) -> int:
    line = ["data", "check", "--recipe", str(recipe), "--stage", "stage1", "--out", str(out)]
    return main([*line, "--workers", str(workers), *words])


@pytest.fixture(scope="module")
def checked(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("checked")
    code = check(recipe[0], out, "--samples", "64", workers=2)
    return code, json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def test_the_report_counts_and_names_every_bad_row(recipe, checked):
    path, rows, bad = recipe
    code, report, _ = checked
    assert (code, report["rows"], report["bad"], report["usable"]) == (1, rows, bad, rows - bad)
    found = [one["where"] for reason in report["reasons"] for one in reason["rows"]]
    assert sorted(int(where.rpartition(":")[2]) for where in found) == list(range(rows - bad + 1, rows + 1))
    assert sum(reason["count"] for reason in report["reasons"]) == bad
    assert 0 < report["learned_tokens"] < report["tokens"] and report["frames"] >= 6 * 2
    assert report["ids_used_twice"] == [
        {"where": f"{path.parent}/rows.jsonl:42", "first": f"{path.parent}/rows.jsonl:1", "uid": "good 0"}
    ]
    ledger = Ledger(path.parent / "out" / "quarantine.jsonl")
    assert {one.where for one in ledger} == set(found) and {one.by for one in ledger} == {"check"}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]


def test_no_text_of_a_row_becomes_markup(checked):
    page = checked[2]
    tags = Tags()
    tags.feed(page)
    ours = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "span", "code", "pre"}
    assert set(tags.seen) <= ours | {
        "details",
        "summary",
        "ul",
        "li",
        "article",
        "figure",
        "figcaption",
        "img",
    }
    assert not [name for _, name, _ in tags.attributes if name.startswith("on")]
    sources = [value for tag, name, value in tags.attributes if (tag, name) == ("img", "src")]
    assert sources and all(re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", one) for one in sources)
    assert "&lt;script&gt;alert(1)" in page and "default-src 'none'" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]", page)


def test_the_mask_shows_what_is_learned(checked):
    article = re.search(r"<article>.*?good 0</b>.*?</article>", checked[2], re.DOTALL)[0]
    learned = re.findall(r'<span class="learned">(.*?)</span>', article)
    assert len(learned) == 1 and learned[0].startswith("red")
    assert re.search(r'<span class="medium">\[\d+ tokens of media\]</span>', article)
    assert article.count("<figure>") == 2 and "2 frames" in article


def test_training_from_the_ledger_looks_at_no_bad_row_again(recipe, checked, tmp_path):
    """The same ledger, after a run of the real trainer: not a line more."""
    path, rows, bad = recipe
    ledger = path.parent / "out" / "quarantine.jsonl"
    before = ledger.read_text()
    steps = ["--max_steps", "6", "--per_device_train_batch_size", "8", "--max_bad_share", "0.6"]
    run(path, tmp_path / "run", 1, "--quarantine", str(ledger), *steps, stage="stage1")
    assert len(logs_of(tmp_path / "run")) == 6 and ledger.read_text() == before
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()


def test_ids_used_twice_are_refused_unless_told(recipe, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    assert check(recipe[0], tmp_path, "--quarantine", str(ledger)) == 1
    refused = [one for one in Ledger(ledger) if "is that of" in one.reason]
    assert [one.where.rpartition(":")[2] for one in refused] == ["42"]
    kept = tmp_path / "kept.jsonl"
    assert check(recipe[0], tmp_path, "--quarantine", str(kept), "--duplicates", "warn") == 1
    assert not [one for one in Ledger(kept) if "is that of" in one.reason]
    assert (len(Ledger(ledger)), len(Ledger(kept))) == (recipe[2], recipe[2] - 1)


def test_good_rows_are_all_usable(tiny, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row(f"{n}")) + "\n" for n in range(3)))
    recipe = write_recipe(tiny, tmp_path, [row("1"), row("2")], output_dir=str(tmp_path / "out"))
    assert check(recipe, tmp_path / "report") == 0
    assert "2 of 2 rows can be used" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --data and --model, or --recipe"),
        (["--data", "x.jsonl"], "needs --model"),
        (["--data", "x.jsonl", "--model", "nowhere"], "no checkpoint folder"),
        (["--data", "x.jsonl", "--recipe", "tiny"], "go with --recipe"),
        (["--recipe", "tinny"], "tinny"),
        (["--recipe", "tiny", "--model", "x"], "go with --data"),
        (["--recipe", "tiny", "--workers", "-1"], "--workers"),
    ],
)
def test_wrong_usage_is_said_and_coded(capsys, words, message):
    assert main(["data", "check", *words]) == 2
    assert message in capsys.readouterr().err
