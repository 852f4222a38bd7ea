"""One logger for the package, and models made without the cost of their random start."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

ROOT = "quicksviewer"
INITIALISED = (nn.Linear, nn.LayerNorm, nn.Embedding)


class _PlainHandler(logging.Handler):
    """One line per record, to standard error; for files and pipes, where rich would pad and wrap."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def _handler(rank: int) -> logging.Handler:
    if rank == 0 and sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        return RichHandler(console=Console(stderr=True), show_path=False)
    handler = _PlainHandler()
    who = f" [rank {rank}]" if rank else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s{who} %(message)s", "%H:%M:%S"))
    return handler


def get_logger(name: str = ROOT) -> logging.Logger:
    """The logger of a module (`__name__`). Rank zero of the launcher says all, the others only warn."""
    root = logging.getLogger(ROOT)
    if not root.handlers:
        rank = int(os.environ.get("RANK", "0"))
        root.addHandler(_handler(rank))
        root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        root.propagate = False
    is_ours = name == ROOT or name.startswith(f"{ROOT}.")
    return logging.getLogger(name) if is_ours else root.getChild(name.strip("_"))


@contextmanager
def disable_torch_init() -> Iterator[None]:
    """Inside, Linear, LayerNorm and Embedding keep the memory they get: weights are loaded over it anyway."""
    originals = [(kind, kind.reset_parameters) for kind in INITIALISED]
    for kind, _ in originals:
        kind.reset_parameters = lambda self: None
    try:
        yield
    finally:
        for kind, original in originals:
            kind.reset_parameters = original
