"""Pieces are done once, also when processes die."""

import crew_work

from quicksviewer.survey.crew import in_pieces


def careful(what: str) -> bytes:
    return f"careful {what}".encode()


def test_a_piece_that_kills_its_process_is_done_carefully_and_the_others_are_done(tmp_path):
    pieces = [(f"p{number}", what) for number, what in enumerate(["a", "b", "c", "d", "die", "e", "f"])]
    done = list(in_pieces(tmp_path, pieces, crew_work.work, careful, workers=1))
    found = {name: (tmp_path / name).read_bytes().decode() for name, _ in pieces}
    assert sorted(done) == sorted(found) and found["p4"] == "careful die"
    assert all(found[name].removeprefix("careful ") == what for name, what in pieces)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_there_is_not_done_again(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    asked = []
    pieces = [("a", "1"), ("b", "2")]
    work = lambda what: asked.append(what) or b"new"  # noqa: E731
    assert list(in_pieces(tmp_path, pieces, work, careful, workers=0)) == ["a", "b"]
    assert asked == ["2"] and (tmp_path / "a").read_bytes() == b"old"
