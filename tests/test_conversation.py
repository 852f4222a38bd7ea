"""Ids must be those of the tokenizer's own chat template; learned must be the answers, to the character."""

import json
import random
import unicodedata
from itertools import groupby

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from quicksviewer.constants import MARKS, MODEL_TOKENS
from quicksviewer.conversation import END_OF_TEXT, TEMPLATES, Span, Turn, encode, render, stop_ids

# The chat templates as the models' authors publish them.
QWEN2_JINJA = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2_JINJA = QWEN2_JINJA.replace(
    "You are a helpful assistant.", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
)
LLAMA3_JINJA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *MODEL_TOKENS, *MARKS)
LLAMA3_TOKENS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *(*MODEL_TOKENS, *MARKS),
)
CORPUS = [
    "What happens in the video?\n\nA red circle comes first, then a blue square.\n",
    "user\nsystem\nassistant\n  indented\n\n   code():\n\treturn 1.5",
    "Where? Here. There's 12.5 of it -- in 3 places; naïve café, Straße, 東京, こんにちは.\n",
]
WORDS = (
    *(
        "cat",
        "The",
        "it's",
        "1.5",
        "2024",
        "naïve",
        "Straße",
        "cafe\u0301",
        "東京",
        "こんにちは",
        "مرحبا",
        "हिन्दी",
    ),
    *(
        "😀",
        "👩‍👩‍👧",
        "🇨🇭",
        "\n",
        "\n\n",
        "  ",
        "\t",
        "?",
        ".",
        "...",
        "(",
        "{role}",
        "<b>",
        "<|",
        "|>",
        "\u00a0",
    ),
)


def byte_level(
    split: str, special: tuple[str, ...], trim_offsets: bool = False, **names
) -> PreTrainedTokenizerFast:
    """A small byte-level BPE that splits words like the real one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def qwen2() -> Qwen2Tokenizer:
    model = json.loads(byte_level(QWEN2_SPLIT, CHATML_TOKENS).backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        extra_special_tokens=list(CHATML_TOKENS),
        chat_template=QWEN2_JINJA,
    )


def smollm2() -> PreTrainedTokenizerFast:
    """Blanks cut off the offsets, and words split so that a line break and blanks may be one token."""
    return byte_level(
        GPT2_SPLIT, CHATML_TOKENS, trim_offsets=True, eos_token="<|im_end|>", chat_template=SMOLLM2_JINJA
    )


def llama3() -> PreTrainedTokenizerFast:
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": LLAMA3_JINJA}
    return byte_level(LLAMA3_SPLIT, LLAMA3_TOKENS, **names)


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """As SentencePiece models are converted: a blank goes with the word after it, rare letters are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    lines = [line for text in CORPUS for line in text.splitlines()]
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made = LlamaTokenizer(
        vocab=model["vocab"],
        merges=merges,
        extra_special_tokens=list(CHATML_TOKENS),
        chat_template=QWEN2_JINJA,
    )
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return made


TOKENIZERS = {
    "qwen2": ("qwen2", qwen2()),
    "smollm2": ("smollm2", smollm2()),
    "llama_3": ("llama_3", llama3()),
    "metaspace first": ("qwen2", metaspace("first")),
    "metaspace always": ("qwen2", metaspace("always")),
    "metaspace never": ("qwen2", metaspace("never")),
}
every_tokenizer = pytest.mark.parametrize(("name", "tokenizer"), TOKENIZERS.values(), ids=TOKENIZERS)


def some_text(rng: random.Random) -> str:
    return "".join(rng.choice(("", " ")) + rng.choice(WORDS) for _ in range(rng.randint(1, 8)))


def some_turns(rng: random.Random, system: bool, tidy: bool = False, open_end: bool = False) -> list[Turn]:
    """`tidy`: answers without white space around them, as rows of data have them."""
    turns = [Turn("system", rng.choice(("", "Be brief.", "  Ünïcode \n")))] if system else []
    for _ in range(rng.randint(1, 3)):
        answer = some_text(rng)
        turns.append(Turn("user", rng.choice(("", "<image>\n", " <video><image>")) + some_text(rng)))
        turns.append(Turn("assistant", (answer.strip() or "none") if tidy else answer))
    return turns[:-1] if open_end else turns


def as_messages(turns) -> list[dict]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def unlearned(spans: list[Span]) -> list[Span]:
    """The same text without borders, which any tokenizer can tokenise."""
    return [Span(span.text, False) for span in spans]


@every_tokenizer
def test_ids_are_those_of_the_published_chat_template(name, tokenizer):
    rng = random.Random(f"golden {name}")
    for trial in range(150):
        system = name == "qwen2" or trial % 2 == 0  # without a system turn, Qwen2's own template invents one
        turns = some_turns(rng, system, open_end=trial % 3 == 0)
        prompt = trial % 3 == 0
        spans = render(TEMPLATES[name], turns, add_generation_prompt=prompt)
        golden = tokenizer.apply_chat_template(
            as_messages(turns), add_generation_prompt=prompt, tokenize=True, return_dict=False
        )
        assert encode(tokenizer, unlearned(spans))[0] == list(golden)
        published = tokenizer.apply_chat_template(
            as_messages(turns), add_generation_prompt=prompt, tokenize=False
        )
        assert "".join(span.text for span in spans) == published


@every_tokenizer
def test_what_is_learned_is_the_answers_and_what_ends_them(name, tokenizer):
    rng = random.Random(f"learned {name}")
    ending = TEMPLATES[name].ending
    for trial in range(150):
        turns = some_turns(rng, system=trial % 2 == 0, tidy=True)
        ids, learn = encode(tokenizer, render(TEMPLATES[name], turns))
        learned = [token for token, flag in zip(ids, learn, strict=True) if flag]
        answers = "".join(turn.text + ending for turn in turns if turn.role == "assistant")
        if tokenizer.backend_tokenizer.normalizer is not None:
            answers = unicodedata.normalize("NFC", answers)
        assert tokenizer.decode(learned, clean_up_tokenization_spaces=False) == answers


@pytest.mark.parametrize("name", ["qwen2", "smollm2", "llama_3"])
def test_labels_agree_with_tokenising_piece_by_piece(name):
    """Between what is learned and what is not these tokenizers always cut, so that both ways must agree."""
    tokenizer = TOKENIZERS[name][1]
    rng = random.Random(f"pieces {name}")
    for _ in range(100):
        spans = render(TEMPLATES[name], some_turns(rng, system=True, tidy=True))
        expected = ([], [])
        for learn, run in groupby(spans, key=lambda span: span.learn):
            ids = tokenizer.encode("".join(span.text for span in run), add_special_tokens=False)
            expected = (expected[0] + ids, expected[1] + [learn] * len(ids))
        assert encode(tokenizer, spans) == expected


@every_tokenizer
def test_a_mark_is_one_id(name, tokenizer):
    ids, learn = encode(tokenizer, render(TEMPLATES[name], [Turn("user", "<image> and <video>\nWhat?")]))
    for mark in MARKS:
        place = ids.index(tokenizer.convert_tokens_to_ids(mark))
        assert ids.count(ids[place]) == 1 and not learn[place]


@pytest.mark.parametrize("split", [GPT2_SPLIT, r"\S+\s*|\s+", r"[\s\S]+"])
def test_offsets_with_blanks_cut_off_are_made_whole(split):
    """The same tokenizer with and without `trim_offsets` must give the same flags, or both refuse."""
    whole, trimmed = byte_level(split, CHATML_TOKENS), byte_level(split, CHATML_TOKENS, trim_offsets=True)
    rng = random.Random(5)
    refused = 0
    for _ in range(600):
        spans = [Span(some_text(rng), learn=bool(rng.getrandbits(1))) for _ in range(4)]
        try:
            expected = encode(whole, spans)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="learned only in part"):
                encode(trimmed, spans)
        else:
            assert encode(trimmed, spans) == expected
    assert 5 < refused < 500


@pytest.mark.parametrize(("name", "answer"), [("qwen2", "\nno"), ("qwen2", "\n"), ("smollm2", "  foo")])
def test_a_token_across_the_border_is_an_error_that_shows_the_text(name, answer):
    spans = render(TEMPLATES[name], [Turn("user", "Is it?"), Turn("assistant", answer)])
    tokenizer = TOKENIZERS[name][1]
    joined = tokenizer.tokenize("assistant" + "\n" + answer)
    assert any(piece.startswith("Ċ") and len(piece) > 1 for piece in joined), (
        "the case is not what it should be"
    )
    with pytest.raises(ValueError, match=r"learned only in part, in '.*assistant"):
        encode(tokenizer, spans)


def test_a_sentencepiece_word_may_start_with_the_blank_of_the_answer_but_not_of_the_question():
    tokenizer = TOKENIZERS["metaspace never"][1]
    assert "▁the" in tokenizer.tokenize("x the")
    ids, learn = encode(tokenizer, [Span("x", False), Span(" the", True)])
    assert (tokenizer.convert_ids_to_tokens(ids)[-1], learn) == ("▁the", [False, True])
    with pytest.raises(ValueError, match="learned only in part"):
        encode(tokenizer, [Span("x ", False), Span("the", True)])


def test_plain_is_the_medium_and_its_caption():
    tokenizer = TOKENIZERS["qwen2"][1]
    turns = [
        Turn("user", "<image>"),
        Turn("assistant", "A cat.\nIt sits."),
        Turn("user", "<video>"),
        Turn("assistant", "Two."),
    ]
    ids, learn = encode(tokenizer, render(TEMPLATES["plain"], turns))
    assert tokenizer.decode(ids) == "<image>\nA cat.\nIt sits.<|endoftext|><video>\nTwo.<|endoftext|>"
    learned = [token for token, flag in zip(ids, learn, strict=True) if flag]
    assert tokenizer.decode(learned) == "A cat.\nIt sits.<|endoftext|>Two.<|endoftext|>"
    assert render(TEMPLATES["plain"], turns[:1], add_generation_prompt=True) == [Span("<image>\n", False)]


def test_the_end_of_text_cannot_be_forged():
    tokenizer = TOKENIZERS["metaspace first"][1]
    turns = [Turn("user", "x"), Turn("assistant", "a</s>b")]
    with pytest.raises(ValueError, match="'</s>', which ends an answer"):
        encode(tokenizer, render(TEMPLATES["plain"], turns))


def test_a_default_system_prompt_stands_only_where_none_is_given():
    name, tokenizer = TOKENIZERS["smollm2"]
    question = Turn("user", "Hi")
    assert "named SmolLM" in render(TEMPLATES[name], [question])[1].text
    given = render(TEMPLATES[name], [Turn("system", ""), question])
    assert "".join(span.text for span in given).startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user")
    assert render(TEMPLATES["qwen2"], [question])[0].text == "<|im_start|>user\n"


def test_llama_3_calls_the_assistant_assistant():
    text = "".join(
        span.text for span in render(TEMPLATES["llama_3"], [Turn("user", "a"), Turn("assistant", "b")])
    )
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>"
    )


def roles(text: str) -> list[Turn]:
    return [Turn({"s": "system", "u": "user", "a": "assistant"}[letter], "x") for letter in text]


@pytest.mark.parametrize("order", ["", "s", "a", "sa", "uu", "uaa", "us", "ssu", "uas", "suauu"])
def test_roles_that_do_not_alternate_are_refused(order):
    with pytest.raises(ValueError, match="turn"):
        render(TEMPLATES["qwen2"], roles(order))


def test_a_generation_prompt_follows_a_user_turn():
    with pytest.raises(ValueError, match="after a user turn"):
        render(TEMPLATES["qwen2"], roles("ua"), add_generation_prompt=True)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_texts_that_forge_turns_or_media_are_refused(name, role):
    template = TEMPLATES[name]
    marks = () if role == "user" else MARKS
    for string in (*template.control, *MODEL_TOKENS, END_OF_TEXT, *marks):
        turns = [Turn(role, f"a{string}b") if turn.role == role else turn for turn in roles("sua")]
        with pytest.raises(ValueError) as caught:
            render(template, turns)
        assert repr(string) in str(caught.value)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_everything_that_a_template_writes_is_forbidden_to_texts(name):
    template = TEMPLATES[name]
    written = "".join(span.text for span in render(template, roles("sua"), False))
    for special in {token for token in (*CHATML_TOKENS, *LLAMA3_TOKENS) if token in written}:
        assert special in template.control


def test_a_turn_refuses_nonsense():
    with pytest.raises(ValueError, match="role is one of"):
        Turn("human", "x")
    with pytest.raises(ValueError, match="is a str"):
        Turn("user", None)


@every_tokenizer
def test_generation_stops_at_one_id_of_the_template(name, tokenizer):
    ids = stop_ids(TEMPLATES[name], tokenizer)
    assert tokenizer.convert_tokens_to_ids(TEMPLATES[name].ending) in ids
    assert tokenizer.eos_token_id in ids and ids == sorted(set(ids))
    assert stop_ids(TEMPLATES["plain"], tokenizer) == [tokenizer.eos_token_id]


def test_a_tokenizer_that_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="'<|eot_id|>', a stop of 'llama_3', is".replace("|", r"\|")):
        stop_ids(TEMPLATES["llama_3"], TOKENIZERS["qwen2"][1])
    nameless = byte_level(QWEN2_SPLIT, CHATML_TOKENS)
    for use in (
        lambda: stop_ids(TEMPLATES["plain"], nameless),
        lambda: encode(nameless, [Span(END_OF_TEXT, True)]),
    ):
        with pytest.raises(ValueError, match="has none"):
            use()

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="fast tokenizer"):
        encode(Slow(), [])


def test_nothing_gives_nothing():
    assert encode(TOKENIZERS["qwen2"][1], []) == ([], [])
