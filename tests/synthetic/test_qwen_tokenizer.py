"""Qwen's tokenizer: ids as its rank file says, special tokens where Qwen2.5-VL has them."""

from itertools import pairwise

import pytest
import regex

from quicksviewer.synthetic.qwen_tokenizer import SPECIALS, find_ranks, merges_of, qwen_tokenizer, read_ranks

TEXTS = (
    r"Write the LaTeX representation for this image. \frac{a_{1}}{\sqrt{2}} + \alpha^{x}=\sum_{i=0}^{n}i",
    "Hello, 世界! naïve café 東京  two  spaces\n\n\tdef f(x):\n    return x ** 2  # 12345",
    "it's they'll DON'T 3.14159 مرحبا 🎉🎊",
)
WORDS = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
"""How Qwen cuts a text into words before it merges."""


@pytest.fixture(scope="module")
def ranks():
    return read_ranks(find_ranks())


@pytest.fixture(scope="module")
def tokenizer():
    return qwen_tokenizer()


def by_ranks(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Ids by definition: in each word, neighbours of the lowest rank are joined until there are none."""
    ids = []
    for word in WORDS.findall(text):
        pieces = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [(ranks.get(a + b, 10**9), at) for at, (a, b) in enumerate(pairwise(pieces))]
            if not pairs or min(pairs)[0] == 10**9:
                break
            at = min(pairs)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        ids += [ranks[piece] for piece in pieces]
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_rank_file(text, tokenizer, ranks):
    ids = tokenizer(text)["input_ids"]
    assert ids == by_ranks(text, ranks)
    assert tokenizer.decode(ids) == text


def test_specials_stand_where_qwen2_5_vl_has_them(tokenizer):
    assert len(tokenizer) == 151_665
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == list(range(151_643, 151_665))
    assert tokenizer("a<|im_end|>b<|image_pad|>")["input_ids"] == [64, 151_645, 65, 151_655]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151_645, 151_643)
    assert tokenizer.decode([151_657, 64, 151_645], skip_special_tokens=True) == "<tool_call>a"


def test_every_merge_makes_its_string(ranks):
    ranks = dict(list(ranks.items())[:20_000])
    merges = merges_of(ranks)
    assert [left + right for left, right in merges] == [word for word in ranks if len(word) > 1]
    assert all(left in ranks and right in ranks for left, right in merges)


def test_a_rank_file_with_a_gap_is_refused(tmp_path):
    (tmp_path / "gap.tiktoken").write_text("YQ== 0\nYg== 2\n")
    with pytest.raises(ValueError, match="without gaps"):
        read_ranks(tmp_path / "gap.tiktoken")
    with pytest.raises(ValueError, match=r"b'abc' \(rank 2\) is no merge"):
        merges_of({b"a": 0, b"b": 1, b"abc": 2, b"c": 3})


def test_the_template_writes_what_qwens_own_writes(tokenizer):
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    said = tokenizer.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
                                         tokenize=False)  # fmt: skip
    assert said == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        "<|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )
