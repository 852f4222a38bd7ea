"""Formulas with their LaTeX, and pictures of them: the embedded data of formula reading.

A formula is a text, drawn from a generator; matplotlib's mathtext draws it with the fonts that matplotlib
carries. Which split a text belongs to is read off its digest: no text is in two splits, whatever the seed.
Pictures of plain text, drawn by the same hand, are what a reader can be warmed up on.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from quicksviewer.utils.registry import lookup, require

PATIENCE = 300
"""Draws in a row without a new text, after which there is taken to be none."""
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Split -> the last digits of a text's digest that belong to it."""
LETTERS = tuple("abckmnxyz")
DIGITS = tuple("0123456789")
GREEK = (r"\alpha", r"\beta", r"\pi", r"\theta")
OPERATORS = ("+", "-", "=", "<", r"\cdot")
FUNCTIONS = (r"\sin", r"\log")
COMMANDS = (*GREEK, *FUNCTIONS, r"\cdot", r"\frac", r"\sqrt")
"""All commands that formulas are written with."""
TEXT_LETTERS = (*LETTERS, *DIGITS, *"+-=<αβπθ")
TEXT_FONTS = (
    ("DejaVu Sans", "normal", ""),
    ("DejaVu Sans", "oblique", ""),
    ("STIXGeneral", "normal", ""),
    ("STIXGeneral", "italic", ""),
    ("cmr10", "normal", "<αβπθ"),
    ("cmmi10", "normal", "0123456789+-=αβπθ"),
)
"""Fonts of plain text: family, style, letters that it draws as others. Formulas are set in the last two."""
TEXT_SIZES = (1.0, 0.7)
"""Sizes of plain text, as shares of the font size; the second is that of an exponent."""
CELL = 28
"""Sides of pictures are multiples of this: a cell of Qwen2.5-VL (2 x 2 patches of 14), so that nothing is
scaled on its way."""


@dataclass(frozen=True, kw_only=True)
class FormulaConfig:
    """What formulas look like."""

    kind: str = "formula"
    """A row of KINDS."""
    max_terms: int = 2
    font_size: float = 22.0
    """Points at 72 to the inch: pixels of an em."""
    margin: int = 2
    """Pixels around the ink at least."""

    def __post_init__(self):
        lookup(KINDS, self.kind, "kind of text")
        if self.max_terms < 1:
            raise ValueError(f"max_terms must be at least 1, got {self.max_terms}")
        if self.font_size < 6:
            raise ValueError(f"font_size must be at least 6 to be legible, got {self.font_size}")
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, got {self.margin}")


# --- texts


def join(pieces: list[str]) -> str:
    """LaTeX of pieces, with a space only where a command would run into a letter."""
    text = ""
    for piece in pieces:
        command = text.rpartition("\\")[2] if "\\" in text else ""
        runs_on = command.isalpha() and piece[:1].isalpha()
        text += f" {piece}" if runs_on else piece
    return text


def _atom(rng: random.Random) -> str:
    return rng.choice(rng.choice((LETTERS, LETTERS, DIGITS, GREEK)))


TERMS: tuple[Callable[[random.Random], list[str]], ...] = (
    lambda rng: [_atom(rng)],
    lambda rng: [_atom(rng), "^{", _atom(rng), "}"],
    lambda rng: [rng.choice(LETTERS), "_{", rng.choice(LETTERS + DIGITS), "}"],
    lambda rng: [r"\frac{", _atom(rng), "}{", _atom(rng), "}"],
    lambda rng: [r"\sqrt{", _atom(rng), "}"],
    lambda rng: [rng.choice(FUNCTIONS), _atom(rng)],
)
"""Ways to write a term."""


def _formula(rng: random.Random, config: FormulaConfig) -> str:
    pieces = []
    for number in range(rng.randint(1, config.max_terms)):
        pieces += [rng.choice(OPERATORS)] if number else []
        pieces += rng.choice(TERMS)(rng)
    return join(pieces)


def _text(rng: random.Random, config: FormulaConfig) -> str:
    most = 2 * config.max_terms  # short ones more often: a letter by itself is learned first
    return "".join(rng.choices(TEXT_LETTERS, k=min(rng.randint(1, most), rng.randint(1, most))))


KINDS = {"formula": _formula, "text": _text}
"""Kind -> draws one: formulas, or plain text of letters, digits and signs."""


def split_of(text: str) -> str:
    """The split that a text belongs to."""
    digit = _digest(text) % 10
    return next(name for name, digits in SPLITS.items() if digit in digits)


def _digest(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def draw_texts(config: FormulaConfig, split: str, seed: int = 0) -> Iterator[str]:
    """Endless texts of a split, in an order that the seed decides; short ones come again."""
    lookup(SPLITS, split, "split")
    rng, draw = random.Random(f"{split} {seed}"), KINDS[config.kind]
    while True:
        text = draw(rng, config)
        if split_of(text) == split:
            yield text


def distinct_texts(config: FormulaConfig, split: str, count: int, seed: int = 0) -> list[str]:
    """The first `count` different texts of a split. ValueError where there are not so many."""
    found: dict[str, None] = {}
    old = 0
    for text in draw_texts(config, split, seed):
        old = old + 1 if text in found else 0
        found.setdefault(text)
        if len(found) == count:
            return list(found)
        if old > PATIENCE:
            raise ValueError(f"{count} different texts were asked for; {config} has about {len(found)}")
    raise AssertionError("draw_texts ends never")


# --- pictures


def render(latex: str, config: FormulaConfig | None = None, variant: int = 0) -> Image.Image:
    """A grey-on-white RGB picture of LaTeX in mathtext's subset, sides multiples of CELL.

    Plain text has font, size and place of its `variant`. Equal arguments give equal pixels. ValueError for
    what mathtext cannot draw, with its reason.
    """
    config = config or FormulaConfig()
    require("matplotlib", "data")
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser

    if config.kind == "formula":
        source, style, rng = f"${latex}$", dict(size=config.font_size), None
    else:
        source, rng = latex, random.Random(f"{latex} {variant}")
        style = _text_style(latex, config.font_size, rng)
    font = FontProperties(**style, math_fontfamily="cm")
    try:
        parsed = MathTextParser("agg").parse(source, dpi=72, prop=font)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()[-12:])
        raise ValueError(f"mathtext cannot draw {latex!r}: {reason}") from error
    return _on_paper(np.asarray(parsed.image), config.margin, rng)


def _text_style(text: str, size: float, rng: random.Random) -> dict:
    """One of the fonts that have all letters of a text, in one of the sizes."""
    fonts = [(family, style) for family, style, lacks in TEXT_FONTS if not set(lacks) & set(text)]
    family, style = rng.choice(fonts)
    return dict(family=family, style=style, size=size * rng.choice(TEXT_SIZES))


def _on_paper(ink: np.ndarray, margin: int, rng: random.Random | None) -> Image.Image:
    """Ink (H, W) uint8 on white paper: in the middle, or where a generator says."""
    sides = [-(-(side + 2 * margin) // CELL) * CELL for side in ink.shape]
    paper = np.full(sides, 255, dtype=np.uint8)
    top, left = (
        (side - taken) // 2 if rng is None else rng.randint(margin, side - taken - margin)
        for side, taken in zip(sides, ink.shape, strict=True)
    )
    paper[top : top + ink.shape[0], left : left + ink.shape[1]] -= ink
    return Image.fromarray(paper).convert("RGB")


class FormulaData:
    """Rows {"image": PIL picture, "text": LaTeX} of a split, drawn when they are first asked for.

    With `repeats` short texts come as often as they are drawn, each time as another variant; otherwise all
    texts differ.
    """

    def __init__(
        self,
        split: str,
        count: int,
        config: FormulaConfig | None = None,
        seed: int = 0,
        repeats: bool = False,
    ):
        self.config = config or FormulaConfig()
        drawn = islice(draw_texts(self.config, split, seed), count)
        self.texts = list(drawn) if repeats else distinct_texts(self.config, split, count, seed)
        self._drawn: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self.texts))[index]
        if index not in self._drawn:
            self._drawn[index] = render(self.texts[index], self.config, index)
        return {"image": self._drawn[index], "text": self.texts[index]}
