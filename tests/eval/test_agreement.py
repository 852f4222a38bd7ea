"""The same question gives the same greedy answer in the harness, in a chat, as a command and on the page."""

import json
import shutil

import pytest

from quicksviewer.eval.run import main
from quicksviewer.serve import cli
from quicksviewer.serve.desk import Desk, DeskLimits
from quicksviewer.serve.session import ChatSession, Decoding


@pytest.fixture(scope="module")
def answers(tiny, learnt, tmp_path_factory):
    """(video, question) -> answer of the harness, for all questions of the world, in batches of five."""
    out = tmp_path_factory.mktemp("harness") / "result.json"
    words = ["world", "--model-path", learnt, "--data", tiny / "data", "--output", out, "--batch-size", 5]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    records = json.loads(out.read_text())["records"]
    return {(record["video"], record["prompts"][0]): record["answers"][0] for record in records}


def test_a_chat_gives_the_answers_of_the_harness(learnt, answers):
    from quicksviewer.model.builder import load_pretrained_model

    loaded = load_pretrained_model(str(learnt))
    assert len(answers) > 10 and len(set(answers.values())) >= 3
    for (video, question), expected in answers.items():
        session = ChatSession(loaded, Decoding(max_new_tokens=8))
        session.see(video)
        assert session.ask(question) == expected


def test_the_command_line_gives_them_too(learnt, answers, capsys):
    (video, question), expected = next(iter(answers.items()))
    words = ["--model-path", str(learnt), "--context", video, "--ask", question, "--max-new-tokens", "8"]
    assert cli.main([*words, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert question in said and expected in said.partition(question)[2]


def test_the_page_gives_them_too(learnt, answers, tmp_path):
    """What a browser sends to the desk and gets back; that it shows just this: tests/serve/test_page.py."""
    from quicksviewer.model.builder import load_pretrained_model

    desk = Desk(load_pretrained_model(str(learnt)), Decoding(max_new_tokens=8), DeskLimits())
    for place, ((video, question), expected) in enumerate(answers.items()):
        visitor = str(place)
        desk.show(visitor, shutil.copy(video, tmp_path / "upload.mp4"))
        assert "".join(desk.ask(visitor, question)).strip() == expected
        desk.clear(visitor)
