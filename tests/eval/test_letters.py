"""How answers to multiple-choice questions are read: a table of styles, strict and lenient."""

import pytest

from quicksviewer.eval.letters import LETTERS, lenient, strict

OPTIONS = ("the red car", "a dog", "two men in hats", "the dog catcher")

STYLES = [  # answer, strict, lenient
    # the letter alone
    ("B", "B", "B"),
    ("B.", "B", "B"),
    ("(B)", "B", "B"),
    ("(B).", "B", "B"),
    ("B)", "B", "B"),
    ("B:", "B", "B"),
    (" B \n", "B", "B"),
    ("[B]", None, "B"),
    ("b", None, "B"),
    ("b.", None, "B"),
    ("(b)", None, "B"),
    ("B!", None, "B"),
    ("**B**", None, "B"),
    ("`B`", None, "B"),
    ('"B"', None, "B"),
    ("'B.'", None, "B"),
    ("$\\boxed{B}$", None, "B"),
    ("\\boxed{\\text{B}}", None, "B"),
    ("<think>A or C? It is C.</think>B", None, "B"),
    # the letter first
    ("B. a dog", None, "B"),
    ("(B) a dog", None, "B"),
    ("B) a dog", None, "B"),
    ("B: a dog", None, "B"),
    ("b) a dog", None, "B"),
    ("[C] two men", None, "C"),
    ("(B) is not moved", None, "B"),
    ("B. is not a car", None, "B"),
    ("B: not seen", None, "B"),
    ("(B) can't be seen", None, "B"),
    ("B, because it barks.", None, "B"),
    ("B - a dog", None, "B"),
    ("B\nThe dog barks.", None, "B"),
    ("D. Although A is shown first, the man is a catcher.", None, "D"),
    # the letter stated
    ("The answer is B", None, "B"),
    ("The answer is B.", None, "B"),
    ("The answer is (B).", None, "B"),
    ("Answer: B", None, "B"),
    ("answer: (b)", None, "B"),
    ("The answer is c.", None, "C"),
    ("The answer is a dog catcher who came late", None, "D"),
    ("ANSWER: B", None, "B"),
    ("Answer: **B**", None, "B"),
    ("The correct answer is option B.", None, "B"),
    ("The correct option is: B. a dog", None, "B"),
    ("The best answer to the question is B", None, "B"),
    ("My final answer is: C.", None, "C"),
    ("Best option: (C)", None, "C"),
    ("Option B is correct.", None, "B"),
    ("B is the correct answer.", None, "B"),
    ("A is correct.", None, "A"),
    ("The answer is A.", None, "A"),
    ("The answer is A because it is red.", None, "A"),
    ("First I thought the answer is A. On second thoughts, the answer is C.", None, "C"),
    ("Option A shows a car, so the answer is B.", None, "B"),
    ("答案是B", None, "B"),
    ("答案：C", None, "C"),
    ("选B", None, "B"),
    ("Therefore, the solution is D", None, "D"),
    # the letter meant
    ("I think B", None, "B"),
    ("I think it is B.", None, "B"),
    ("I choose option C.", None, "C"),
    ("I would go with B", None, "B"),
    ("I believe that B fits best", None, "B"),
    ("It must be D.", None, "D"),
    ("Option C", None, "C"),
    ("choice (C)", None, "C"),
    ("It is B, not A.", None, "B"),
    ("not A but B", None, "B"),
    ("It is B rather than C", None, "B"),
    ("The picture shows what B says.", None, "B"),
    ("(A) is correct? No, (B).", None, "B"),
    ("Is it A? No, it is B.", None, "B"),
    ("(B) is not correct. It's (C).", None, "C"),
    ("The answer is not A but B.", None, "B"),
    ("A cannot be right, B is.", None, "B"),
    ("The video shows a dog, so A", None, "A"),
    ("There is a dog. Therefore (B).", None, "B"),
    ("No, B.", None, "B"),
    ("no it is B", None, "B"),
    ("What barks? B. a dog", None, "B"),
    ("B?", None, "B"),
    # the words of an option
    ("a dog", None, "B"),
    ("A dog.", None, "B"),
    ("The red car", None, "A"),
    ("There are two men in hats on a bench.", None, "C"),
    ("The dog catcher!", None, "D"),
    ("It is the dog catcher, and no car.", None, "D"),
    ("It is not the dog catcher but a dog.", None, "B"),
    ("No. A dog.", None, "B"),
    ("There is no car, only the dog!", None, "B"),
    ("The dog's owner is not seen; it is the dog catcher", None, "D"),
    # no answer
    ("", None, None),
    ("   \n", None, None),
    ("I do not know.", None, None),
    ("A man walks through the door.", None, None),
    ("A cat and I", None, None),
    ("Cannot be determined", None, None),
    ("A or B", None, None),
    ("A, B", None, None),
    ("A and C", None, None),
    ("The answer is A or B.", None, None),
    ("Either A or B is right.", None, None),
    ("A. the red car\nB. a dog\nC. two men in hats\nD. the dog catcher", None, None),
    ("Not A.", None, None),
    ("The answer is not B.", None, None),
    ("The answer cannot be B", None, None),
    ("The answer can't be (B).", None, None),
    ("The answer isn’t B.", None, None),
    ("I don't think the answer is B.", None, None),
    ("B is not correct.", None, None),
    ("(B) is not correct.", None, None),
    ("(B) can't be the right answer.", None, None),
    ("(B) is clearly wrong.", None, None),
    ("B isn't right.", None, None),
    ("B cannot be it.", None, None),
    ("Option B is wrong.", None, None),
    ("It is not a dog", None, None),
    ("It isn't the red car.", None, None),
    ("It cannot be a dog.", None, None),
    ("There is no dog in the video.", None, None),
    ("There is not any dog.", None, None),
    ("Look at C: there is a dog.", None, None),
    ("E", None, None),
    ("The answer is F.", None, None),
    ("AB", None, None),
    ("Because", None, None),
    ("the red car and two men in hats", None, None),
    ("<think>The answer is B", None, None),
]


def test_the_table_is_large_enough_and_says_nothing_twice():
    assert len({answer for answer, *_ in STYLES}) == len(STYLES) >= 60


@pytest.mark.parametrize(("answer", "strictly", "leniently"), STYLES, ids=[repr(s[0])[:40] for s in STYLES])
def test_an_answer_is_read(answer, strictly, leniently):
    assert (strict(answer, len(OPTIONS)), lenient(answer, OPTIONS)) == (strictly, leniently)


@pytest.mark.parametrize("count", [2, 4, 5, 10])
def test_every_letter_there_is_and_no_other(count):
    options = [f"thing number {n}" for n in range(count)]
    for place, letter in enumerate(LETTERS):
        expected = letter if place < count else None
        assert strict(letter, count) == lenient(letter, options) == expected
        assert lenient(f"{letter}. something", options) == expected
        assert lenient(f"({letter.lower()})", options) == expected


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("No", "B"), ("No, he is not.", "B"), ("B. No", "B"), ("no (B)", "B"), ("Yes", "A"), ("Not yes", None)],
)
def test_an_option_may_deny(answer, letter):
    assert lenient(answer, ("yes", "no")) == letter
    assert lenient("He is not happy.", ("happy", "not happy")) == "B"


def test_what_is_read_strictly_is_read_leniently_the_same():
    for answer, strictly, leniently in STYLES:
        assert strictly in (None, leniently), answer


def test_the_published_reader_is_not_ours():
    """It took the first capital from A to J: I of "I think B", A of "A man ..."."""
    assert lenient("I think B", OPTIONS) == "B" and lenient("I think B", [*OPTIONS] * 2) == "B"
    assert lenient("A man opens a door", OPTIONS) is None and lenient("Both are right", OPTIONS) is None
    assert lenient("Best: C", OPTIONS) == "C"  # the published prefixes were glued together by a missing comma
