"""F11: fifteen kinds of rows that go wrong, at 1%, 10% and 50%, on two ranks with two workers each."""

import json
import tarfile
from dataclasses import replace

import pytest
from bad_files import SEEN_TOGETHER, bad_rows, odd_rows, write_files, write_rows
from tiny_world import fresh
from walk import STEP_ROWS, run

from quicksviewer.data.dataset import BadSamplePolicy, LazySupervisedDataset, PackedDataset
from quicksviewer.data.ledger import KnownBad
from quicksviewer.data.lengths import size_table
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.packing import Caps
from quicksviewer.survey.check import check
from quicksviewer.survey.subject import Subject

SHARES = {0.01: 0.2, 0.1: 0.2, 0.5: 0.7}
"""Share of bad rows -> what the run allows."""
MEDIA = {"cut.mp4", "empty.mp4", "words.mp4", "none.mp4", "lying.mp4", "nowhere.mp4", "locked.mp4"}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def processor(tiny):
    return fresh(tiny).processor


def data_of(folder, processor, share, ledger, allowed, repeat=""):
    wanted = write_rows(folder / "rows.jsonl", share)
    (spec,) = parse_mixture(f"{folder / 'rows.jsonl'}{repeat}")
    mixture = Mixture([replace(spec, media_root=str(folder))])
    policy = BadSamplePolicy(max_share=allowed)
    return LazySupervisedDataset(mixture, processor, 300, policy, ledger), wanted


def lines_of(ledger) -> list[dict]:
    return [json.loads(line) for line in ledger.read_text().splitlines()]


def numbers(ledger) -> list[int]:
    return [int(line["where"].rpartition(":")[2]) for line in lines_of(ledger)]


def line_of(folder, kind) -> int:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return lines.index(json.dumps(bad_rows()[kind])) + 1


@pytest.mark.parametrize("share", SHARES)
def test_the_ledger_is_the_bad_set_and_ranks_stay_together(folder, processor, tmp_path, share):
    ledger = tmp_path / "ledger.jsonl"
    data, wanted = data_of(folder, processor, share, ledger, SHARES[share])
    assert len(wanted) == len(bad_rows()) == 15 and len(data) == round(15 / share)
    alone = wanted - {line_of(folder, SEEN_TOGETHER)}
    told, looks = run(data, tmp_path / "two")
    assert [set(one) for one in told] == [{"steps"}, {"steps"}], told
    assert sorted(numbers(ledger)) == sorted(alone)  # each once: precision and recall 1
    first, second = (one["steps"] for one in told)
    assert len(first) == len(second) == 2 * -(-len(data) // STEP_ROWS)
    assert all(len(step) == STEP_ROWS // 2 for step in first + second)
    # a process looks at a bad file once, and once more to know whether any part of it could be used; whoever
    # comes to it later knows
    assert {name for name in looks if name in MEDIA} == MEDIA
    assert max(looks[name] for name in MEDIA | {"huffman.jpg"}) <= 2

    single, known_looks = run(data, tmp_path / "one", world=1, workers=0)
    together = [a + b for a, b in zip(first, second, strict=True)]
    assert single[0]["steps"] == together  # replacements depend on the row alone
    assert not MEDIA & set(known_looks) and "huffman.jpg" not in known_looks
    assert sorted(numbers(ledger)) == sorted(alone)

    check(Subject("rows", data.mixture, processor, 300, ledger), ledger, refuse_twice=True)
    assert sorted(numbers(ledger)) == sorted(wanted)
    with pytest.raises(KnownBad, match="uid 'good 0' is that of"):
        LazySupervisedDataset(data.mixture, processor, 300, None, ledger).load(
            line_of(folder, SEEN_TOGETHER) - 1
        )


def test_a_line_says_what_and_where(folder, processor, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    data, _ = data_of(folder, processor, 0.5, ledger, 0.7)
    run(data, tmp_path / "two")
    lines = {line.get("uid"): line for line in lines_of(ledger)}
    reasons = {
        "cut": "truncated",
        "empty": "is empty",
        "words": "is text",
        "huffman": "damaged JPEG",
        "base64": "not base64",
        None: "not readable as JSON",
        "lying": "damaged",
        "missing": "no such file",
        "locked": "permission denied",
        "huge": "limit of 300",
        "silent": "is empty",
        "count": "2 <image> in the conversation, but 1 image",
    }
    for uid, reason in reasons.items():
        assert reason in lines[uid]["reason"], lines[uid]
    assert lines["cut"]["path"] == str(folder / "cut.mp4") and lines["cut"]["is_whole"]
    assert all(line["step"] in range(200) and line["rank"] in (0, 1) for line in lines.values())
    assert all(line["worker"] in (0, 1) and line["by"] == "train" for line in lines.values())
    assert "path" not in lines["base64"]  # it lies in the row; nobody wants it in the ledger again


def test_packs_leave_the_same_rows_out(folder, processor, tmp_path):
    """What is found by measuring and what is found by decoding stand in one ledger."""
    ledger = tmp_path / "ledger.jsonl"
    data, wanted = data_of(folder, processor, 0.5, None, 0.7)
    table = size_table(data.mixture, processor, Caps(tokens=300))
    packed = PackedDataset(data.mixture, processor, Caps(tokens=300), table, data.policy, ledger)
    told, _ = run(packed, tmp_path / "two")
    assert [set(one) for one in told] == [{"steps"}, {"steps"}], told
    assert set(numbers(ledger)) | {line_of(folder, "permission")} == wanted - {line_of(folder, SEEN_TOGETHER)}
    first, second = (one["steps"] for one in told)
    assert len(first) == len(second) == 2 * -(-len(packed) // STEP_ROWS)


def test_media_of_an_archive_go_wrong_likewise(folder, processor, tmp_path):
    """All kinds but `permission`, which a member has none of."""
    wanted = write_rows(folder / "rows.jsonl", 0.5)
    (folder / "locked.mp4").chmod(0o600)
    try:
        with tarfile.open(tmp_path / "media.tar", "w") as tar:
            for path in (*folder.glob("*.mp4"), *folder.glob("*.jpg")):
                tar.add(path, path.name)
    finally:
        (folder / "locked.mp4").chmod(0)
    (spec,) = parse_mixture(str(folder / "rows.jsonl"))
    mixture = Mixture([replace(spec, media_root=str(tmp_path / "media.tar"))])
    ledger = tmp_path / "ledger.jsonl"
    data = LazySupervisedDataset(mixture, processor, 300, BadSamplePolicy(max_share=0.7), ledger)
    told, _ = run(data, tmp_path / "two")
    assert [set(one) for one in told] == [{"steps"}, {"steps"}], told
    expected = wanted - {line_of(folder, kind) for kind in (SEEN_TOGETHER, "permission")}
    assert sorted(numbers(ledger)) == sorted(expected)


def test_odd_rows_are_usable(folder, processor, tmp_path):
    rows = tmp_path / "odd.jsonl"
    rows.write_text("".join(json.dumps(one) + "\n" for one in odd_rows().values()))
    (spec,) = parse_mixture(str(rows))
    data = LazySupervisedDataset(Mixture([replace(spec, media_root=str(folder))]), processor, 300)
    loaded = [data.load(index) for index in range(len(data))]
    assert [sum(one.get("medium_frames", [])) for one in loaded] == [1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_above_the_set_share_the_run_ends(folder, processor, tmp_path, workers):
    data, _ = data_of(folder, processor, 0.5, tmp_path / "ledger.jsonl", 0.2, "*8")
    (told,), _ = run(data, tmp_path / "one", world=1, workers=workers, epochs=1)
    assert "TooManyBadRows" in told["error"] and "--max_bad_share" in told["error"]
