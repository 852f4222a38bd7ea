"""How near a text is to the one that was meant: character error rate, edit distance, BLEU-4, exact match.

All of LaTeX as text; nothing here knows what a formula looks like.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\S", re.DOTALL)
"""A command, an escaped sign, or one character."""
TEXT_COMMAND = re.compile(r"\\(?:text|mbox|operatorname|mathrm)\s*\{[^{}]*\}")
BLEU_ORDER = 4


def edit_distance(left: Sequence, right: Sequence) -> int:
    """Fewest insertions, deletions and substitutions that turn one into the other (Levenshtein)."""
    previous = list(range(len(right) + 1))
    for row, mine in enumerate(left, start=1):
        line = [row]
        for column, other in enumerate(right, start=1):
            change = previous[column - 1] + (mine != other)
            line.append(min(change, previous[column] + 1, line[-1] + 1))
        previous = line
    return previous[-1]


def character_error_rate(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """All edits by all characters that were expected; can exceed 1."""
    edits = sum(edit_distance(p, e) for p, e in _pairs(predicted, expected))
    return edits / max(1, sum(map(len, expected)))


def mean_character_error_rate(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Mean over texts of edits by expected characters; short texts weigh as much as long ones."""
    return _mean(edit_distance(p, e) / max(1, len(e)) for p, e in _pairs(predicted, expected))


def normalised_edit_distance(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """As pix2tex has it: mean over texts of edits by expected characters, superfluous spaces left out."""
    return mean_character_error_rate([*map(squeeze, predicted)], [*map(squeeze, expected)])


def symmetric_edit_distance(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """The same by the longer of both texts, so that it stays between 0 and 1."""
    pairs = [(squeeze(p), squeeze(e)) for p, e in _pairs(predicted, expected)]
    return _mean(edit_distance(p, e) / max(1, len(p), len(e)) for p, e in pairs)


def exact_match(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Share of texts that are equal, superfluous spaces left out."""
    return _mean(squeeze(p) == squeeze(e) for p, e in _pairs(predicted, expected))


def bleu4(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """BLEU-4 of the whole corpus on LaTeX tokens, one reference each, not smoothed
    (doi:10.3115/1073083.1073135)."""
    matches, totals, lengths = [0] * BLEU_ORDER, [0] * BLEU_ORDER, [0, 0]
    for p, e in _pairs(predicted, expected):
        mine, other = latex_tokens(p), latex_tokens(e)
        lengths[0], lengths[1] = lengths[0] + len(mine), lengths[1] + len(other)
        for order in range(1, BLEU_ORDER + 1):
            said, meant = _grams(mine, order), _grams(other, order)
            matches[order - 1] += sum((said & meant).values())
            totals[order - 1] += sum(said.values())
    if not all(matches):
        return 0.0
    precision = sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / BLEU_ORDER
    brevity = min(0.0, 1 - lengths[1] / lengths[0])
    return math.exp(precision + brevity)


METRICS = {
    "cer": character_error_rate,
    "cer_mean": mean_character_error_rate,
    "ned": normalised_edit_distance,
    "ned_longer": symmetric_edit_distance,
    "exact": exact_match,
    "bleu4": bleu4,
}
"""Name in reports -> (predicted, expected) -> a number."""


def latex_tokens(text: str) -> list[str]:
    r"""Commands, escaped signs and single characters: `\frac{a}2` is `\frac`, `{`, `a`, `}`, `2`."""
    return TOKEN.findall(text)


def squeeze(text: str) -> str:
    r"""Without the spaces that LaTeX does not read: all but those in `\text{...}` and its like, and the one
    that parts a command from a letter."""
    kept, rest, last = [], text.strip(), 0
    for found in TEXT_COMMAND.finditer(rest):
        kept += [_squeeze_maths(rest[last : found.start()]), found.group()]
        last = found.end()
    return "".join([*kept, _squeeze_maths(rest[last:])])


def _squeeze_maths(text: str) -> str:
    tokens = latex_tokens(text)
    before = ["", *tokens]
    return "".join(
        f" {token}" if left[:1] == "\\" and left[1:].isalpha() and token.isalpha() else token
        for left, token in zip(before, tokens, strict=False)
    )


def _grams(tokens: list[str], order: int) -> Counter:
    return Counter(tuple(tokens[at : at + order]) for at in range(len(tokens) - order + 1))


def _pairs(predicted: Sequence[str], expected: Sequence[str]):
    if len(predicted) != len(expected):
        raise ValueError(f"{len(predicted)} texts were predicted and {len(expected)} expected")
    return zip(predicted, expected, strict=True)


def _mean(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))
