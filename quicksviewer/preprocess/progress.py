"""How far a job is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections import Counter

from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)
SECONDS_BETWEEN_LINES = 15


class Progress:
    """Use it in a `with`; `step` after each task."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done, self.counts = what, total, 0, Counter()
        self.said = time.monotonic()
        self.bar = None

    def __enter__(self):
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bars

            self.bar = Bars(console=Console(stderr=True))
            self.bar.start()
            self.row = self.bar.add_task(self.what, total=self.total)
        return self

    def step(self, result: dict) -> None:
        self.done += 1
        self.counts.update({key: value for key, value in result.items() if isinstance(value, int)})
        if self.bar:
            self.bar.update(self.row, completed=self.done, description=f"{self.what}: {self._figures()}")
        elif self.done == self.total or time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            logger.info("%s: %d of %d shards, %s", self.what, self.done, self.total, self._figures())

    def _figures(self) -> str:
        return ", ".join(f"{count} {key}" for key, count in self.counts.items() if key != "bytes")

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()
