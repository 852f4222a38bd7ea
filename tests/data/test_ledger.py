"""The ledger: many writers, each row once, and what a line says is believed only while it holds."""

import json
import multiprocessing
import os
import pickle

import pytest

from quicksviewer.data.dataset import BadSamplePolicy
from quicksviewer.data.ledger import BadRow, Ledger, digest, state_of

JUDGES = ("av", "settings")


def bad(number: int, **changes) -> BadRow:
    return BadRow(**{"where": f"rows.jsonl:{number}", "reason": "a reason", "judge": "settings"} | changes)


def write(path, numbers) -> None:
    ledger = Ledger(path)
    for number in numbers:
        ledger.add(bad(number, reason="long " * 2000))  # longer than a pipe's atomic write


def test_many_processes_write_each_row_once(tmp_path):
    path, fork = tmp_path / "deep" / "ledger.jsonl", multiprocessing.get_context("fork")
    writers = [fork.Process(target=write, args=(path, range(start, start + 20))) for start in (0, 5, 10, 15)]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(int(line["where"].rpartition(":")[2]) for line in lines) == list(range(35))
    assert len(Ledger(path)) == 35


def test_what_others_write_is_learned_and_a_torn_line_is_passed_over(tmp_path, caplog):
    path = tmp_path / "ledger.jsonl"
    one, other = Ledger(path), Ledger(path)
    assert one.add(bad(1)) and not other.add(bad(1)) and other.add(bad(2))
    one.refresh()
    assert {row.where for row in one} == {"rows.jsonl:1", "rows.jsonl:2"}
    with path.open("a") as file:
        file.write('{"where": "rows.jsonl:3", "rea')  # a process was killed as it wrote
    one.refresh()
    assert one.add(bad(4)) and len(path.read_text().splitlines()) == 4
    again = Ledger(path)
    assert [row.where for row in again] == [f"rows.jsonl:{n}" for n in (1, 2, 4)]
    assert "no bad row" in caplog.text
    assert len(pickle.loads(pickle.dumps(again))) == 3


@pytest.mark.parametrize("line", ["[]", "3", "null", '{"where": 1, "reason": "x"}', '{"index": 1}', "\ufffd"])
def test_a_strange_line_is_named_and_not_believed(tmp_path, caplog, line):
    path = tmp_path / "ledger.jsonl"
    path.write_text(line + "\n")
    assert len(Ledger(path)) == 0 and "no bad row" in caplog.text


def test_a_line_holds_while_row_settings_and_medium_are_the_same(tmp_path):
    medium, record = tmp_path / "a.mp4", {"uid": "a"}
    medium.write_bytes(b"bad")
    told = {"row": digest(record), "path": str(medium), "medium": state_of(str(medium))}
    ledger = Ledger()
    ledger.add(bad(1, **told))
    assert ledger.known("rows.jsonl:1", record, JUDGES).reason == "a reason"
    assert ledger.known(os.path.abspath("rows.jsonl") + ":1", record, JUDGES) is not None
    assert ledger.known("rows.jsonl:2", record, JUDGES) is None
    assert ledger.known("rows.jsonl:1", {"uid": "b"}, JUDGES) is None
    assert ledger.known("rows.jsonl:1", record, ("av", "other settings")) is None
    medium.write_bytes(b"repaired")
    assert ledger.known("rows.jsonl:1", record, JUDGES) is None


def test_a_whole_medium_is_known_for_every_row_of_the_same_decoder(tmp_path):
    medium = str(tmp_path / "a.mp4")
    ledger = Ledger()
    ledger.add(bad(1, path=medium, is_whole=True, judge="av", medium=state_of(medium)))
    assert ledger.known_medium(medium, ("av", "anything")) is not None
    assert ledger.known_medium(medium, ("decord", "anything")) is None
    assert ledger.known_medium(medium + "x", JUDGES) is None
    (tmp_path / "a.mp4").write_bytes(b"now it is there")
    assert ledger.known_medium(medium, JUDGES) is None


def test_the_state_of_a_store_is_that_of_its_files(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "imgs.tsv").write_bytes(b"ab")
    before = state_of(f"{store}::a.mp4")
    assert before[0] == 2
    (store / "imgs.tsv").write_bytes(b"abc")
    assert state_of(f"{store}::a.mp4") != before and state_of("a\0b") is None


# --- the rule and the rate ---


@pytest.mark.parametrize("length", range(1, 131))
def test_replacements_visit_every_row(length):
    policy = BadSamplePolicy()
    for index in (0, length // 2):
        tried = [policy.next_index(index, attempt, length) for attempt in range(1, length + 1)]
        assert sorted(tried) == list(range(length))


@pytest.mark.parametrize(
    ("bad_rows", "seen", "share", "ends"),
    [
        (50, 50, 0.2, False),  # too few to judge
        (51, 51, 0.2, True),
        (15, 60, 0.2, False),  # a quarter of so few may be chance
        (30, 60, 0.2, True),
        (2600, 10_000, 0.2, True),
        (2000, 10_000, 0.2, False),
        (1, 51, 0.0, True),
        (0, 51, 0.0, False),
        (1000, 1000, 1.0, False),
    ],
)
def test_the_rate_is_judged_beyond_chance(bad_rows, seen, share, ends):
    assert BadSamplePolicy(max_share=share).is_exceeded(bad_rows, seen) == ends


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        BadSamplePolicy(max_share=share)
