"""Forms of a difference between two tensors, on pieces of their bytes: exact bits, or numbers that round."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
Joiner = Callable[[bytes, bytes, str], bytes]


@dataclass(frozen=True)
class Form:
    """`diff(target, base, dtype)` and `join(diff, base, dtype)` of pieces with equally many elements;
    `stored`: dtype of differences, None for the tensor's own, whose bits come back."""

    diff: Joiner
    join: Joiner
    stored: str | None = None

    def checked_diff(self, target: bytes, base: bytes, dtype: str) -> bytes:
        """The difference. ValueError where base and difference would give an infinity, or something that is
        no number, in the place of another value."""
        diff = self.diff(target, base, dtype)
        if self.stored is None:
            return diff
        wanted, made = _numbers(target, dtype), _numbers(self.join(diff, base, dtype), dtype)
        kept = made.isfinite() | (made == wanted) | (made.isnan() & wanted.isnan())
        if not kept.all():
            place = int((~kept).nonzero()[0])
            raise ValueError(
                f"{wanted[place]:g} would become {made[place]:g}: the difference is too large for "
                f"{self.stored}; the form xor holds every one"
            )
        return diff


def _xor(a: bytes, b: bytes, dtype: str) -> bytes:
    return (np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).tobytes()


def _numbers(raw: bytes, dtype: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=FLOATS[dtype])


def _floats(raw: bytes, dtype: str) -> torch.Tensor:
    return _numbers(raw, dtype).to(torch.float32)


def _raw(values: torch.Tensor) -> bytes:
    return values.view(torch.uint8).numpy().tobytes()


def _minus(stored: str) -> Joiner:
    return lambda target, base, dtype: _raw(
        (_floats(target, dtype) - _floats(base, dtype)).to(FLOATS[stored])
    )


def _plus(stored: str) -> Joiner:
    return lambda diff, base, dtype: _raw((_floats(base, dtype) + _floats(diff, stored)).to(FLOATS[dtype]))


FORMS = {
    "xor": Form(_xor, _xor),
    "fp16": Form(_minus("F16"), _plus("F16"), "F16"),
    "fp32": Form(_minus("F32"), _plus("F32"), "F32"),
}
