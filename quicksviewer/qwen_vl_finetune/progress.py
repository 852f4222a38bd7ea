"""How far a training is: lines of step, loss, rate, pace and time left, from the first process alone."""

import time
from collections.abc import Callable, Sequence

from quicksviewer.utils.dist import is_main

EVERY_SECONDS = 10.0


def line(step: int, total: int, loss: float, rates: Sequence[float], pace: float) -> str:
    """One line. `pace`: steps per second."""
    shown = " and ".join(f"{rate:.2e}" for rate in dict.fromkeys(rates))
    left = (total - step) / pace / 60
    return (
        f"step {step} of {total}: loss {loss:.4f}, rate {shown}, {pace:.2f} steps/s, {left:.1f} minutes left"
    )


class Progress:
    """Prints the line of the first and the last step, and of one each EVERY_SECONDS between."""

    def __init__(self, total: int, clock: Callable[[], float] = time.perf_counter):
        self.total, self.clock = total, clock
        self.began = self.told = clock()

    def __call__(self, step: int, loss: float, rates: Sequence[float]) -> None:
        now = self.clock()
        if not is_main() or (1 < step < self.total and now - self.told < EVERY_SECONDS):
            return
        self.told = now
        print(line(step, self.total, loss, rates, step / (now - self.began)), flush=True)
