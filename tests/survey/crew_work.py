"""What the processes of test_crew.py do: a module without imports, so that they start quickly."""

import os


def work(what: str) -> bytes:
    """The word itself; "die" takes the process with it."""
    if what == "die":
        os._exit(3)
    return what.encode()
