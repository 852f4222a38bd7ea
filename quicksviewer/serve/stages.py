"""Where the time of an answer goes: decode, tower, cubing, resampler, first token, the tokens after it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import StoppingCriteria

PARTS = {"tower": "vision_tower", "cubing": "cubing", "resampler": "vision_resampler"}
"""Stage -> module of the model."""
STAGES = ("decode", *PARTS, "first token")
"""What passes before a word is seen, in this order."""


@dataclass
class Times:
    """Seconds of each stage that has taken place since the answer before, and how the answer came."""

    stages: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    kept_tokens: int = 0
    """Of the prompt, those that were read in an earlier turn."""
    new_tokens: int = 0
    rest_seconds: float = 0.0
    """From the first token to the last."""
    stopped: bool = False

    def add(self, stage: str, seconds: float) -> None:
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first; None where there are none."""
        return (self.new_tokens - 1) / self.rest_seconds if self.rest_seconds > 0 else None

    def __str__(self) -> str:
        told = [f"{name} {in_words(self.stages[name])}" for name in STAGES if name in self.stages]
        if self.new_tokens:
            rate = f" at {self.tokens_per_second:.0f}/s" if self.tokens_per_second else ""
            told.append(f"{self.new_tokens} tokens{rate}")
        if self.kept_tokens:
            told.append(f"{self.kept_tokens} of {self.prompt_tokens} prompt tokens were read before")
        return " · ".join([*told, *(["stopped"] if self.stopped else [])])


def in_words(seconds: float) -> str:
    """A duration as people read it: "3 ms", "1.24 s", "71 s"."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def now(device: torch.device) -> float:
    """Seconds, when everything that was started on the device has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def timed_parts(model: nn.Module, times: Times) -> Iterator[None]:
    """Inside, calls of the parts of PARTS are timed."""
    started, hooks = {}, []
    for stage, name in PARTS.items():
        part = getattr(model, name)

        def begin(*_, stage=stage):
            started[stage] = now(model.device)

        def end(*_, stage=stage):
            times.add(stage, now(model.device) - started[stage])

        hooks += [part.register_forward_pre_hook(begin), part.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def until(stop: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """A `stop` that also ends what begins now when so many seconds have passed."""
    end = time.monotonic() + seconds
    return lambda: stop() or time.monotonic() > end


class Watch(StoppingCriteria):
    """Looks on while an answer comes: counts and times its tokens, and ends it when it is told to."""

    def __init__(self, times: Times, device: torch.device, stop: Callable[[], bool] | None):
        self.times, self.device, self.stop = times, device, stop
        self.started = now(device)

    def __call__(self, input_ids, scores, **_):
        moment = now(self.device)
        if not self.times.new_tokens:
            self.times.add("first token", moment - self.started)
            self.started = moment
        self.times.new_tokens += 1
        self.times.rest_seconds = moment - self.started
        self.times.stopped = bool(self.stop and self.stop())
        return torch.full((len(input_ids),), self.times.stopped, device=input_ids.device)
