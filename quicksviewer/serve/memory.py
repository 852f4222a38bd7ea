"""What the language model remembers of the tokens it has read, so that a later turn reads only what is new.

A conversation grows at its end. The keys and values of the tokens that two prompts begin with are the same,
those of a video's thousands of tokens among them; they are kept, and the rest is cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two prompts begin with together."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class Memory:
    """Ids that were read, one row, and their keys and values.

    A slot of a medium has the same id whichever medium it is of: a memory is for one conversation, whose
    media never change their order.
    """

    ids: tuple[int, ...]
    cache: Cache

    @classmethod
    def empty(cls, config) -> "Memory":
        """Of a model that has read nothing. `config`: that of the language model."""
        return cls((), DynamicCache(config=config))

    @property
    def can_forget(self) -> bool:
        """Whether its end can be cut off: not so where a layer remembers a window or a sum of the past."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def before(self, prompt: Sequence[int]) -> int:
        """How many ids of a prompt need not be read. The last always is: the answer begins behind it."""
        return min(common_length(self.ids, prompt), len(prompt) - 1) if self.can_forget else 0

    def cut(self, length: int) -> Cache:
        """The cache of the first `length` ids; the rest is gone from it."""
        if surplus := self.cache.get_seq_length() - length:
            self.cache.crop(-surplus)
        return self.cache

    @classmethod
    def of(cls, ids: Sequence[int], cache: Cache) -> "Memory":
        """After an answer: of all ids but the last, which nobody has read yet."""
        return cls(tuple(ids[: cache.get_seq_length()]), cache)
