"""How answers are drawn, and how what was drawn becomes text while it comes."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from transformers.generation.streamers import BaseStreamer

from quicksviewer.utils.generation import GREEDY


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are drawn. Greedy unless a temperature is given."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.temperature < 0 or self.num_beams < 1:
            raise ValueError(f"bad decoding settings: {self}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if (self.top_k or 0) < 0 or self.repetition_penalty <= 0:
            raise ValueError(f"bad decoding settings: {self}")
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise ValueError("top_p and top_k need a temperature above 0: greedy decoding draws nothing")

    def arguments(self) -> dict:
        """Keyword arguments of generate. Every one is said, so that no checkpoint's defaults creep in."""
        shared = dict(
            max_new_tokens=self.max_new_tokens,
            repetition_penalty=self.repetition_penalty,
            num_beams=self.num_beams,
        )
        if self.temperature == 0:
            return {**GREEDY, **shared}
        top_p = 1.0 if self.top_p is None else self.top_p
        drawn = dict(do_sample=True, temperature=self.temperature, top_p=top_p, top_k=self.top_k or 0)
        return {**shared, **drawn}


def decoded(tokenizer, ids) -> str:
    """The text of an answer, without white space around it."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


class Pieces(BaseStreamer):
    """Hands an answer to a function as it grows. Joined, the pieces are the answer.

    The answer is decoded as a whole each time, since tokens decoded apart from their neighbours lose blanks.
    """

    BYTE = re.compile("<0x[0-9A-F]{2}>")
    """A token that is a part of a letter."""

    def __init__(self, tokenizer, on_text: Callable[[str], None]):
        self.tokenizer, self.on_text = tokenizer, on_text
        self.words = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
        self.ids, self.shown = None, 0

    def put(self, value):
        if self.ids is None:  # the prompt comes first
            self.ids = []
            return
        self.ids += [token for token in value.flatten().tolist() if token in self.words]
        text = decoded(self.tokenizer, self.ids)
        last = self.tokenizer.convert_ids_to_tokens(self.ids[-1:])
        if not any(map(self.BYTE.fullmatch, last)) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._show(text)

    def end(self):
        self._show(decoded(self.tokenizer, self.ids or []))

    def _show(self, text: str):
        if len(text) > self.shown:
            self.on_text(text[self.shown :])
            self.shown = len(text)
