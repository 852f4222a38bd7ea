"""What was read is not read again: counts of tokens, and answers equal to those without a memory."""

import pytest
import torch
from chatty import chatty
from tiny_world import BACKBONES, fresh, videos
from transformers import DynamicCache, Qwen2Config

from quicksviewer.serve.decoding import Decoding
from quicksviewer.serve.memory import Memory, common_length
from quicksviewer.serve.session import ChatSession

QUESTIONS = ("What happens when?", "Which is first?", "Which is last?")


@pytest.fixture(scope="module", params=BACKBONES)
def loaded(request, tiny):
    return chatty(fresh(tiny, request.param))


@pytest.fixture(scope="module")
def plain(tiny):
    """A model of plain times: superfluous zeros are masked, so that places and positions differ."""
    return chatty(fresh(tiny, layout={"time_style": "plain"}))


@pytest.fixture
def read(loaded):
    """How many tokens each call of the language model got."""
    lengths = []
    hook = loaded.model.model.register_forward_hook(
        lambda _, __, kwargs, out: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    yield lengths
    hook.remove()


def told(loaded, paths, questions, remembers=True, **decoding) -> tuple[list[str], ChatSession]:
    session = ChatSession(loaded, Decoding(max_new_tokens=10, **decoding))
    answers = []
    for path, question in zip([*paths, *[None] * len(questions)], questions, strict=False):
        if path:
            session.see(path)
        answers.append(session.ask(question))
        if not remembers:
            session._memory = None
    return answers, session


def test_answers_are_those_without_a_memory(loaded, tiny):
    paths = [str(videos(tiny)[0]), str(tiny / "data/images/00000_0.png")]
    with_memory, session = told(loaded, paths, QUESTIONS)
    without, other = told(loaded, paths, QUESTIONS, remembers=False)
    assert with_memory == without and len(set(with_memory)) == len(QUESTIONS)
    assert session.times.kept_tokens > 0 == other.times.kept_tokens


def test_with_plain_times_too(plain, tiny):
    paths = [str(videos(tiny)[0])]
    with_memory, session = told(plain, paths, QUESTIONS)
    assert with_memory == told(plain, paths, QUESTIONS, remembers=False)[0]
    assert session.times.kept_tokens > 0


def test_a_seed_draws_the_same_with_a_memory(loaded, tiny):
    draw = dict(temperature=2.0, seed=5)
    paths = [str(videos(tiny)[0])]
    assert told(loaded, paths, QUESTIONS, **draw)[0] == told(loaded, paths, QUESTIONS, False, **draw)[0]


def test_a_second_question_reads_only_what_is_new(loaded, tiny, read):
    session = ChatSession(loaded, Decoding(max_new_tokens=3))
    session.see(str(videos(tiny)[0]))
    session.ask(QUESTIONS[0])
    first = session.times.prompt_tokens
    assert read[0] == first and session.times.kept_tokens == 0
    del read[:]
    session.ask(QUESTIONS[1])
    times = session.times
    assert read[0] == times.prompt_tokens - times.kept_tokens
    assert first <= times.kept_tokens < times.prompt_tokens and read[0] < first


def test_a_prompt_that_was_read_is_read_from_its_last_token_on(loaded, tiny, read):
    """As when a question is asked again whose answer was stopped before a word."""
    paths = [str(videos(tiny)[0])]
    expected = told(loaded, paths, QUESTIONS[:1])[0][0]
    session = ChatSession(loaded, Decoding(max_new_tokens=10))
    session.see(paths[0])
    before = session.dialogue
    session.ask(QUESTIONS[0], stop=lambda: True)
    assert session.times.stopped and session.times.new_tokens == 1
    session.dialogue = before
    del read[:]
    assert session.ask(QUESTIONS[0]) == expected
    assert read[0] == 1 and session.times.kept_tokens == session.times.prompt_tokens - 1


def test_a_crash_within_an_answer_leaves_no_half_read_memory(loaded, tiny):
    paths = [str(videos(tiny)[0])]
    answers, _ = told(loaded, paths, QUESTIONS[:2])
    session = ChatSession(loaded, Decoding(max_new_tokens=10))
    session.see(paths[0])
    session.ask(QUESTIONS[0])
    hook = loaded.model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            session.ask(QUESTIONS[1])
    finally:
        hook.remove()
    assert session.ask(QUESTIONS[1]) == answers[1] and session.times.kept_tokens == 0


def test_clear_forgets_everything(loaded, tiny):
    paths = [str(videos(tiny)[0])]
    _, session = told(loaded, paths, QUESTIONS)
    session.clear()
    assert (session.dialogue.turns, session.media, session.encoded) == ((), [], None)
    session.see(paths[0])
    assert session.ask(QUESTIONS[0]) == told(loaded, paths, QUESTIONS[:1])[0][0]
    assert session.times.kept_tokens == 0


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [
        ([], [], 0),
        ([1, 2], [], 0),
        ([1, 2], [1, 2], 2),
        ([1, 2, 3], [1, 2, 4, 5], 2),
        ([1], [2], 0),
        ([1], [1, 9], 1),
    ],
)
def test_common_length(one, other, length):
    assert common_length(one, other) == common_length(other, one) == length


def test_a_memory_keeps_the_last_token_to_be_read():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), 0)
    memory = Memory.of([5, 6, 7, 8, 9], cache)
    assert memory.ids == (5, 6, 7, 8)
    assert memory.before([5, 6, 7, 8]) == 3 and memory.before([5, 6, 7, 8, 1]) == 4
    assert memory.before([4, 6]) == 0
    assert memory.cut(2).get_seq_length() == 2


def test_a_layer_with_a_window_is_not_cut():
    config = Qwen2Config(
        num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=0, vocab_size=9
    )
    memory = Memory((1, 2, 3), Memory.empty(config).cache)
    assert not memory.can_forget and memory.before([1, 2, 3, 4]) == 0
    assert Memory.empty(Qwen2Config()).can_forget
