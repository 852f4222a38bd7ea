"""The vocabulary of a published checkpoint becomes ours.

The published code adds its tokens to the language model's tables; ours have a small table of their own, so
these rows move there and the language model gets its own vocabulary back.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from quicksviewer.constants import MODEL_TOKENS
from quicksviewer.model.consolidate import FLOATS
from quicksviewer.model.made_weights import MadeTensor
from quicksviewer.model.processor import add_special_tokens, time_token_ids
from quicksviewer.model.published import PUBLISHED_TOKENS
from quicksviewer.model.raw_weights import RawTensor

WORDS, HEAD, OWN = "model.embed_tokens.weight", "lm_head.weight", "mm_tokens.weight"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)


@dataclass(frozen=True)
class Vocabulary:
    """`ids`: of PUBLISHED_TOKENS in the checkpoint; `tokenizer`: without them, with ours."""

    ids: dict[str, int]
    tokenizer: object
    first_special_id: int
    time_token_ids: list[int]

    @property
    def words(self) -> int:
        """Rows of the language model's tables before the published tokens: its own vocabulary."""
        return min(self.ids.values())

    @property
    def writes_single_digits(self) -> bool:
        """Whether the tokenizer writes a number digit by digit, as our timestamps are written."""
        return self.tokenizer.encode("1234.5", add_special_tokens=False) == [
            self.time_token_ids["0123456789.".index(character)] for character in "1234.5"
        ]


def read_vocabulary(folder: Path, workspace: Path) -> Vocabulary:
    """The tokenizer of a published checkpoint, cleaned in `workspace`. ValueError for tokens that are
    missing, or are not the last of the vocabulary."""
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    vocabulary = theirs.get_vocab()
    if missing := [token for token in PUBLISHED_TOKENS if token not in vocabulary]:
        raise ValueError(
            f"the tokenizer of {folder} lacks {', '.join(missing)}: not a Quicksviewer checkpoint"
        )
    ids = {token: vocabulary[token] for token in PUBLISHED_TOKENS}
    first, rest = min(ids.values()), len(theirs) - len(ids)
    if sorted(ids.values()) != list(range(first, first + len(ids))) or first != rest:
        raise ValueError(
            f"the published tokens must be the last of the vocabulary, from {rest}; they are {ids}"
        )
    _copy_without(folder, workspace)
    tokenizer = AutoTokenizer.from_pretrained(workspace, local_files_only=True)
    if len(tokenizer) != first:
        raise ValueError(
            f"{folder}: without the published tokens {len(tokenizer)} are left, expected {first}"
        )
    return Vocabulary(ids, tokenizer, add_special_tokens(tokenizer), time_token_ids(tokenizer))


def _copy_without(folder: Path, to: Path) -> None:
    """Tokenizer files without the published tokens, wherever transformers has written them."""
    to.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if not (folder / name).is_file():
            continue
        if name.endswith(".json") and name != "vocab.json":
            text = json.dumps(_without(json.loads((folder / name).read_text())), ensure_ascii=False)
            (to / name).write_text(text)
        else:
            shutil.copyfile(folder / name, to / name)


def _without(value):
    """A JSON value without entries that are a published token, are named so, or have one as their content."""
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in PUBLISHED_TOKENS and not _is_token(v)}
    if isinstance(value, list):
        return [_without(entry) for entry in value if not _is_token(entry)]
    return value


def _is_token(value) -> bool:
    return (value.get("content") if isinstance(value, dict) else value) in PUBLISHED_TOKENS


def move_rows(tensors: dict[str, RawTensor], vocabulary: Vocabulary) -> dict[str, RawTensor | MadeTensor]:
    """The tensors with language model tables of its own words alone, and with our table of tokens."""
    if WORDS not in tensors:
        return dict(tensors)  # which is said where missing weights are
    table = tensors[WORDS]
    if table.shape[0] < vocabulary.words + len(PUBLISHED_TOKENS):
        raise ValueError(
            f"{WORDS} has {table.shape[0]} rows, the tokenizer {vocabulary.words} words and more"
        )
    cut = {name: _first_rows(tensors[name], vocabulary.words) for name in (WORDS, HEAD) if name in tensors}
    shape = (len(MODEL_TOKENS), table.shape[1])
    own = MadeTensor(table.file, table.dtype, shape, lambda: _own_rows(table, vocabulary.ids))
    return {**tensors, **cut, OWN: own}


def _first_rows(tensor: RawTensor, rows: int) -> RawTensor:
    return replace(tensor, shape=(rows, *tensor.shape[1:]), stop=tensor.start + rows * tensor.row_bytes)


def _own_rows(table: RawTensor, ids: dict[str, int]) -> Tensor:
    """Rows of MODEL_TOKENS. Two of them, the slots of visual tokens and times, are never looked up: the
    mean."""
    known = {token: _row(table, number) for token, number in ids.items()}
    mean = torch.stack(list(known.values())).float().mean(dim=0).to(FLOATS[table.dtype])
    return torch.stack([known.get(token, mean) for token in MODEL_TOKENS])


def _row(table: RawTensor, number: int) -> Tensor:
    pieces: Iterator[bytes] = table.pieces(number * table.row_bytes, (number + 1) * table.row_bytes)
    return torch.frombuffer(bytearray().join(pieces), dtype=FLOATS[table.dtype])
