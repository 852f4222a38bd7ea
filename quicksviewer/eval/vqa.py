"""VQA accuracy: when two answers are the same, and how right an answer is that several people have given.

Antol et al., VQA (arXiv 1505.00468), and the rules of its evaluation: case, punctuation, articles, number
words and contractions do not matter. An answer is as right as min(people who gave it / 3, 1), averaged over
leaving out each person once. With one person it is right or wrong.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

ARTICLES = ("a", "an", "the")
DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(DIGITS.split())} | {"none": "0"}
SHORT_FORMS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
i'm i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't o'clock oughtn't shan't she's
should've shouldn't that'd that's there'd there're there's they'd they'll they're they've 'twas wasn't we've
weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're
why's won't would've wouldn't y'all you'd you'll you're you've
"""
CONTRACTIONS = {word.replace("'", ""): word for word in SHORT_FORMS.split()}
"""As people type them -> as they are written; only what is no other word without its apostrophe."""
MARKS = re.escape(';/[]"{}()=+\\_-><@`,?!')
ENDS = re.compile(rf"(?<=\s)[{MARKS}]|[{MARKS}](?=\s)|(?<=\d),(?=\d)|^[{MARKS}]|[{MARKS}]$")
"""Marks that are left out: beside a space, at the ends, a comma inside a number. The others part words."""
POINT = re.compile(r"(?<!\d)\.|\.(?!\d)")


def normalise(answer: str) -> str:
    """An answer in the form in which answers are compared."""
    text = whole = " ".join(answer.lower().split())
    while (shorter := ENDS.sub("", text).strip()) != text:
        text = shorter
    text = POINT.sub("", re.sub(rf"[{MARKS}]", " ", text))
    words = [NUMBERS.get(word, word) for word in text.split() if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in words) or whole


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """How right an answer is, 0 to 1. With fewer than four people a third of the way is one of the others.

    ValueError without references."""
    if not references:
        raise ValueError("an answer is right or wrong by references, and there are none")
    given, known = normalise(answer), [normalise(reference) for reference in references]
    if not given:
        return 0.0
    if len(known) == 1:
        return float(given == known[0])
    enough, same = min(3, len(known) - 1), known.count(given)
    return sum(min((same - (one == given)) / enough, 1.0) for one in known) / len(known)


def majority(pairs: Iterable[tuple[Hashable, str]]) -> dict[Hashable, str]:
    """The most frequent answer of each key, of several the one that comes first: what a blind guess says that
    knows the key (the type of a question, or its words)."""
    counts: dict[Hashable, Counter] = {}
    for key, answer in pairs:
        counts.setdefault(key, Counter())[normalise(answer)] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


def type_of(answers: Sequence[str]) -> str:
    """yes_no, number or other, by the most frequent answer: the types of the VQA data sets."""
    common = Counter(map(normalise, answers)).most_common(1)[0][0]
    if common in ("yes", "no"):
        return "yes_no"
    return "number" if re.fullmatch(r"\d+([.,]\d+)?", common) else "other"
