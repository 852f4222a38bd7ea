"""The letter that an answer to a multiple-choice question gives, read strictly and leniently.

Strict: the answer is the letter and nothing else. Lenient: what a person would take it for; where a person
would have to guess, there is none. No answer is never the right one.
"""

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
_ALONE = re.compile(r"[(\[]?\s*([A-Ja-j])\s*[)\]]?\s*[.:,;!]?")
_HIDDEN = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_BOXED = re.compile(r"\\(?:boxed|text|mathrm|textbf)\{([^{}]*)\}")
_NOT = r"(?:not|cannot|\w+n't|neither|nor|never|except|excluding|rather than|instead of|unlike|than)"
_WORD = r"(?:option|choice|letter|answer)"
_BETWEEN = rf"(?:\s+(?:{_WORD}|the|is|be|it|it's|that|think|believe|say|possibly|likely|actually))*"
"""What may stand between a denial and what it denies: "I don't think the answer is B"."""
_DENIED = re.compile(rf"\b(?:{_NOT}{_BETWEEN}\s*[(\[\"']*|no(?:\s+{_WORD})*\s+)$", re.IGNORECASE)
_IS = r"(?:is|was|does|do|did|can|could|would|will|should|must|may|seems|looks)"
_IS_NOT = rf"[)\]\"']*\s+(?:{_IS}\s+(?:not|never|no)|cannot|\w+n't)\b"
_IS_WRONG = rf"[)\]\"']*\s+{_IS}\s+(?:be\s+)?(?:\w+ly\s+)?(?:wrong|incorrect|false|excluded)\b"
_DENIED_AFTER = re.compile(rf"{_IS_NOT}|{_IS_WRONG}", re.IGNORECASE)
_REJECTED = re.compile(
    rf"{_IS_WRONG}|{_IS_NOT}\s*(?:[.,;!]|$|(?:be\s+)?(?:the\s+|a\s+)?(?:\w+ly\s+)?"
    rf"(?:correct|right|true|best|it|possible|likely|{_WORD})\b)",
    re.IGNORECASE,
)
"""Of a letter that opens the answer: "(B) is not moved" may be the words of the option."""
_NO_OPTION = re.compile(
    rf"\b(?:no|{_NOT})(?:\s+(?:a|an|the|any|some|is|be|really|possibly|likely|actually))*\s*[\"'(]*$"
)
"""Before the words of an option."""
_QUESTION = re.compile(r"[^.?!\n]*\?")
_LETTER = r"[(\[\"']*([A-J])(?![\w'’]|-\w)"
_STATED = re.compile(
    rf"(?i:\b(?:answer|option|choice|solution|conclusion)s?\b[^.\n]{{0,60}}?(?:\bis\b|\bbe\b|:|=|->)"
    rf"\s*(?:{_WORD}\b\s*)?)(?:{_LETTER}|[(\[]([a-j])[)\]]|([b-j])(?=[.!\s]*$))"
    rf"|(?:答案|正确选项|选择|选项|选)\s*(?:是|为|:|：)?\s*(?:选项)?{_LETTER}"
    rf"|(?i:\b{_WORD}\s+)?{_LETTER}[)\]]*(?i:\s+(?:is|seems|looks)\s+(?:the\s+)?"
    rf"(?:most\s+likely\s+)?(?:correct|right|true|best|answer))"
)
_LEADING = re.compile(r"\s*(?:[(\[]([A-Ja-j])[)\]]|([A-Ja-j])[.):\]]|([A-J])(?=\s*(?:[,;\n]|[-–—]\s|$)))")
_MEANT = re.compile(
    rf"(?i:\b(?:option|choice|choose|chose|select|pick|pick:|go with|think|believe|guess|say|it's|it is|"
    rf"must be|would be|should be|be|so|thus|hence|therefore),?\s+"
    rf"(?:(?:it\s+is|it's|that|{_WORD})\s+)*){_LETTER}"
)
_LISTED = re.compile(r"^\s*[(\[]?([A-J])[.):\]]", re.MULTILINE)
_SINGLE = re.compile(r"(?<![\w'’.-])[(\[\"']*([A-J])(?![\w'’]|-\w|\.\w)")
_OTHER = re.compile(r"\s*[)\]\"']*\s*(?:or|and|/|&|,)\s*(?:option\s+|choice\s+)?[(\[\"']*([A-J])(?![\w'’])")
_BEFORE = re.compile(r"(?<![\w'’])([A-J])[)\]\"']*\s*(?:or|and|/|&|,)\s*[(\[\"']*$")
_ARTICLE = re.compile(
    r"\s+(?!(?:because|since|as|is|was|for|which|with|and|or|but|due|based|the|seems)\b)[a-z]"
)
"""What makes a capital A the first word of a phrase: "A man walks"."""


def strict(answer: str, count: int) -> str | None:
    """The letter, where the answer is a capital letter of the first `count` and at most a bracket or a full
    stop: "B", "(B)", "B." """
    found = re.fullmatch(r"\s*(?:\(([A-J])\)|([A-J])\)?)[.:]?\s*", answer)
    return _known(found[1] or found[2], count) if found else None


def lenient(answer: str, options: Sequence[str]) -> str | None:
    """The letter that an answer means, or None where it means none, or more than one."""
    text, count = _plain(answer), len(options)
    if found := _ALONE.fullmatch(text):
        return _known(found[1].upper(), count)
    for read in (_stated, _leading, _meant):
        if (letters := read(text)) is not None:
            return _known(letters, count)
    said = {_by_text(text, options), _single(text, count)} - {None}
    return said.pop() if len(said) == 1 else None


def _known(letter: str, count: int) -> str | None:
    """`letter`, if it is one and one of those that there were."""
    return letter if len(letter) == 1 and letter in LETTERS[:count] else None


def _plain(answer: str) -> str:
    """Without thoughts, markup, quotation marks around it, and questions that it answers itself."""
    text = _HIDDEN.sub("", answer)
    while (shorter := _BOXED.sub(r"\1", text)) != text:
        text = shorter
    text = re.sub(r"[*`$_#]+", "", text).replace("’", "'").strip().strip("\"'“”").strip()
    rest = _QUESTION.sub("", text).strip()
    return rest if any(_counts(rest, found) for found in _SINGLE.finditer(rest)) else text


def _stated(text: str) -> str | None:
    """Of "the answer is B": the last that is said. Several letters at once are returned together."""
    found = [m for m in _STATED.finditer(text) if not _is_article(text, m) and not _is_denied(text, m)]
    if not found:
        return None
    letter = next(filter(None, found[-1].groups())).upper()
    others = _OTHER.match(text, found[-1].end()), _BEFORE.search(text[: _place(found[-1])])
    return letter + "".join(other[1] for other in others if other and other[1] != letter)


def _leading(text: str) -> str | None:
    """Of "B. the man" or "(b) the man"; of a list of options: all of them."""
    if (found := _LEADING.match(text)) is None or _REJECTED.match(text, found.end()):
        return None
    letter = next(filter(None, found.groups())).upper()
    listed = set(_LISTED.findall(text)) - {letter}
    other = _OTHER.match(text, found.end()) or _OTHER.match(text, found.end() - 1)
    return letter + "".join(sorted(listed | ({other[1]} - {letter} if other else set())))


def _meant(text: str) -> str | None:
    """Of "I choose B", "option B": where all that is said is one letter."""
    found = {m[1] for m in _MEANT.finditer(text) if not _is_article(text, m) and not _is_denied(text, m)}
    others = {m[1] for m in _SINGLE.finditer(text) if _counts(text, m)}
    return found.pop() if len(found) == 1 and others <= found else None


def _by_text(text: str, options: Sequence[str]) -> str | None:
    """The one option whose words stand in the answer and are not denied; of options inside each other the
    longest."""
    found = [
        (letter, words)
        for letter, option in zip(LETTERS, options, strict=False)
        if (words := _words(option)) and _says(text.casefold(), words)
    ]
    whole = [f for f in found if not any(f[1] != other and f" {f[1]} " in f" {other} " for _, other in found)]
    return whole[0][0] if len(whole) == 1 else None


def _words(text: str) -> str:
    """Words in small letters, without articles."""
    words = re.findall(r"[\w']+", text.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _says(text: str, words: str) -> bool:
    """Whether words stand in a text, whatever articles are between them, and are not denied there."""
    between = r"[^\w']+(?:(?:a|an|the)[^\w']+)*"
    places = re.finditer(rf"(?<![\w']){between.join(map(re.escape, words.split()))}(?![\w'])", text)
    return any(not _NO_OPTION.search(text[: found.start()]) for found in places)


def _single(text: str, count: int) -> str | None:
    """The one capital letter in the text that stands for itself and is not denied."""
    found = {m[1] for m in _SINGLE.finditer(text) if m[1] in LETTERS[:count] and _counts(text, m)}
    return found.pop() if len(found) == 1 else None


def _counts(text: str, found: re.Match) -> bool:
    return not _is_article(text, found) and not _is_denied(text, found)


def _is_article(text: str, found: re.Match) -> bool:
    """Whether an A begins a phrase, or an I is the speaker."""
    letter = next(filter(None, found.groups()))
    return (letter == "A" and bool(_ARTICLE.match(text, found.end()))) or letter == "I"


def _place(found: re.Match) -> int:
    """Where the letter of a match stands."""
    return next(found.start(group) for group, letter in enumerate(found.groups(), start=1) if letter)


def _is_denied(text: str, found: re.Match) -> bool:
    """Whether "not", "rather than" ... stands just before the letter, or "is not" just behind it."""
    place = _place(found)
    return bool(_DENIED.search(text[:place]) or _DENIED_AFTER.match(text, place + 1))
