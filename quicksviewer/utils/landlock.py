"""Folders beyond which a process reads nothing and changes nothing any more (Linux 5.13 and later, Landlock).

Who has given up other folders cannot look into processes outside either, their environment included. It needs
no privileges. Where the kernel has no Landlock, nothing is given up, and the caller is told so.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Sequence

from quicksviewer.utils.syscalls import give_up_privileges, libc

CREATE, ADD_RULE, RESTRICT = 444, 445, 446
"""Its system calls, on every machine."""
VERSION_FLAG, PATH_RULE = 1, 1
EXECUTE, READ_FILE, READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
CHANGES = {1: 1 << 1 | 0x1FF << 4, 2: 1 << 13, 3: 1 << 14}
"""Version of Landlock -> what it can refuse beside reading: write, remove, make; move elsewhere; truncate."""
SCOPES, SCOPES_SINCE = 0b11, 6
"""Sockets without a file, and signals, of processes outside."""


def version() -> int:
    """Of this kernel's Landlock; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, _call(CREATE, None, 0, VERSION_FLAG))


def read_only(places: Sequence[str]) -> bool:
    """From now on this process reads below `places` alone and changes no file. Whether it is so."""
    if not (known := version()):
        return False
    changes = sum(bits for since, bits in CHANGES.items() if known >= since)
    handled = changes | EXECUTE | READ_FILE | READ_FOLDER
    attributes = struct.pack("QQQ", handled, 0, SCOPES if known >= SCOPES_SINCE else 0)
    size = len(attributes) if known >= SCOPES_SINCE else 8
    rules = _call(CREATE, ctypes.c_char_p(attributes), size, 0)
    if rules < 0:
        return False
    try:
        for place in filter(os.path.exists, places):
            _allow(rules, place)
        give_up_privileges()
        return _call(RESTRICT, rules, 0) == 0
    finally:
        os.close(rules)


def _allow(rules: int, place: str) -> None:
    """Reading, of a file or of all below a folder."""
    fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        what = READ_FILE | EXECUTE | (READ_FOLDER if os.path.isdir(place) else 0)
        _call(ADD_RULE, rules, PATH_RULE, ctypes.c_char_p(struct.pack("=Qi", what, fd)), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments) -> int:
    words = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    return int(libc().syscall(ctypes.c_long(number), *words))
