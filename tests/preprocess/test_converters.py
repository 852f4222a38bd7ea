"""Every converter on a miniature of its data set: which samples come out, what became of the other rows."""

import json

import pytest
from public_images import CASES as IMAGES
from public_videos import CASES as VIDEOS

from quicksviewer.data.preprocess import parse_sample
from quicksviewer.preprocess.convert import main
from quicksviewer.preprocess.schema import SchemaError, check_row, is_optional
from quicksviewer.preprocess.tables import PUBLIC, find
from quicksviewer.utils.data_util import load_image, open_video

CASES = {**IMAGES, **VIDEOS}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module", params=sorted(CASES))
def made(request, tmp_path_factory, stock):
    """(name, case, output folder) of a data set that was converted by the command line."""
    folder = tmp_path_factory.mktemp("case")
    (folder / "data").mkdir()
    case = CASES[request.param](folder / "data", stock)
    words = [request.param, *case.words, "--output", str(folder / "out"), "--max_skipped", "0.9"]
    assert main([*words, "--num_workers", "1", "--rows_per_shard", "2"]) == 0
    return request.param, case, folder / "out"


def test_every_converter_has_a_miniature():
    assert sorted(one.name for one in PUBLIC) == sorted(CASES)


def test_the_samples_are_those_that_the_data_set_has(made):
    name, case, out = made
    for part, expected in case.samples.items():
        assert lines(out / f"{name}{part}.jsonl") == [{**sample, "source": name} for sample in expected]
    written = {path.name for path in out.glob("*.jsonl")} - {f"{name}.skipped.jsonl"}
    assert (
        written
        == {f"{name}{part}.jsonl" for part in find(name).parts}
        == {f"{name}{part}.jsonl" for part in case.samples}
    )


def test_every_row_is_accounted_for(made):
    name, case, out = made
    counts = json.loads((out / f"{name}.report.json").read_text())["counts"]
    assert (counts["rows"], counts["used"]) == (case.rows, case.used)
    assert counts["skipped"] == case.skipped
    ledger = lines(out / f"{name}.skipped.jsonl")
    assert len(ledger) == sum(case.skipped.values())
    assert all(entry["detail"] and entry["file"] and entry["row"] >= 0 for entry in ledger)
    unused = {(entry["file"], entry["row"]) for entry in ledger if entry["reason"] != "cut"}
    assert len(unused) == case.rows - case.used


def test_our_own_reader_takes_every_sample_and_its_media_decode(made):
    name, case, out = made
    for entry in json.loads((out / f"{name}.report.json").read_text())["mixture"]:
        for number, row in enumerate(lines(out / entry["path"])):
            for medium in parse_sample(row, f"{entry['path']}:{number}").media:
                path = f"{entry['media_root']}/{medium.path}"
                if medium.kind == "image":
                    assert load_image(path).size == (40, 24)
                else:
                    with open_video(path) as video:
                        assert video.probe().duration > 0.5


def test_media_of_rows_are_written_once_and_only_for_samples(made):
    name, case, out = made
    rows = [row for part in case.samples for row in lines(out / f"{name}{part}.jsonl")]
    media = [m.path for row in rows for m in parse_sample(row, "row").media]
    stored = {str(path.relative_to(out)) for path in out.glob("*_media/**/*") if path.is_file()}
    assert stored == {path for path in media if path.startswith(f"{name}_media/")}


def test_uids_are_unique(made):
    name, case, out = made
    for part in case.samples:
        uids = [row["uid"] for row in lines(out / f"{name}{part}.jsonl")]
        assert len(set(uids)) == len(uids)


def test_a_second_call_does_nothing(made, capsys):
    name, case, out = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    words = [name, *case.words, "--output", str(out), "--max_skipped", "0.9", "--rows_per_shard", "2"]
    assert main([*words, "--num_workers", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("converter", PUBLIC, ids=lambda one: one.name)
def test_every_column_of_every_schema_is_checked(converter):
    """Columns that are missing, or of another kind, are named with file and row."""
    where = "x.json, row 7"
    for column, kind in converter.schema.items():
        schema = {column: kind}
        with pytest.raises(SchemaError, match=rf"x\.json, row 7 > {column}: expected .*, got <object"):
            check_row({column: object()}, schema, where)
        if is_optional(kind):
            assert check_row({}, schema, where) == {column: None}
        else:
            with pytest.raises(SchemaError, match=rf"x\.json, row 7: '{column}' is missing, expected "):
                check_row({}, schema, where)
