"""The word `data`: make, index, check, stats and frames, each a module that is imported when it is called.

python -m quicksviewer data check --recipe tiny --stage stage2
"""

import sys
from importlib import import_module

from quicksviewer.utils.registry import did_you_mean

WORDS = {
    "make": ("quicksviewer.synthetic.cli", ("make",), "make the embedded world: clips, questions, models"),
    "index": ("quicksviewer.survey.index", (), "probe every medium once and write a manifest"),
    "check": ("quicksviewer.survey.check", (), "look at every row as training would, and report"),
    "stats": ("quicksviewer.survey.stats", (), "how long, how many, of what kind and from where"),
    "frames": ("quicksviewer.survey.frames", (), "write a store of the frames that training looks at"),
}
"""Word -> module with a `main`, what it is told before the rest of the line, and what it does."""


def usage() -> str:
    rows = (f"  {word:7}{text}" for word, (_, _, text) in WORDS.items())
    return "\n".join(["usage: quicksviewer data WORD [OPTION...]", "", *rows])


def main(argv: list[str] | None = None) -> int:
    """Run one word: 0 done, 1 failed (for `check`: rows cannot be used), 2 wrong usage."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    word, *rest = words
    if word not in WORDS:
        hint = did_you_mean(word, WORDS)
        print(f"error: unknown word {word!r}.{hint} Known: {', '.join(WORDS)}", file=sys.stderr)
        return 2
    module, first, _ = WORDS[word]
    return import_module(module).main([*first, *rest])


if __name__ == "__main__":
    sys.exit(main())
