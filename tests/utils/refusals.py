"""A medium that is refused: at once, and without taking memory for what it claims to be."""

import io
import time
from pathlib import Path

import pytest
from PIL import Image

from quicksviewer.utils.data_util import MediaError
from quicksviewer.utils.media import IMAGE_KINDS, VIDEO_KINDS

ALL_KINDS = (*VIDEO_KINDS, *IMAGE_KINDS)
AT_ONCE = 1.0
"""Seconds in which a refusal must come; nearly all take under a millisecond."""
GROWTH_KIB = 32 * 1024


def refuse(work, *reasons: str) -> str:
    """The reason for which it is refused: at once, and without taking memory for what it claims to be."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, started = memory_kib("VmRSS"), time.monotonic()
    with pytest.raises(MediaError, match="|".join(reasons) or None) as error:
        work()
    assert time.monotonic() - started < AT_ONCE
    assert memory_kib("VmHWM") - before < GROWTH_KIB
    return error.value.reason


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def encoded(kind: str, size=(8, 8), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(buffer, kind, **options)
    return buffer.getvalue()
