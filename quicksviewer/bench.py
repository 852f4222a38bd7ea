"""Studies that take long and end in a document: `quicksviewer bench NAME ...`.

A name is a module, imported when it is called; its `main(argv)` returns the exit code.
"""

import sys
from importlib import import_module

from quicksviewer.utils.registry import lookup

STUDIES = {"cubing": "quicksviewer.cubes.study", "film": "quicksviewer.cubes.film"}
"""Name -> module."""


def main(argv: list[str] | None = None) -> int:
    """Exit code of the study; 2 for an unknown one."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: quicksviewer bench {{{','.join(STUDIES)}}} [OPTION...]")
        return 0 if words else 2
    try:
        module = lookup(STUDIES, words[0], "study")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return import_module(module).main(words[1:])
