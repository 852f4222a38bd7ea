"""System calls that a process forbids itself for good (Linux): network, other programs, other processes.

A seccomp filter needs no privileges. Where the system or the processor is another one, nothing is forbidden,
and the caller is told so.
"""

import ctypes
import errno
import platform
import struct
import sys

FORBIDDEN = {
    "x86_64": (
        0xC000003E,
        {
            "network": (41, 42, 49, 50, 425),  # socket, connect, bind, listen, io_uring_setup
            "programs": (59, 322),  # execve, execveat
            "processes": (62, 101, 310, 311),  # kill, ptrace, process_vm_readv, process_vm_writev
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "network": (198, 203, 200, 201, 425),
            "programs": (221, 281),
            "processes": (129, 117, 270, 271),
        },
    ),
}
"""Machine -> its number in the kernel's audit, and the numbers of its calls by what they are for."""

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of the classic packet filter."""
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
NUMBER_AT, MACHINE_AT = 0, 4
"""Where the call's number and the machine stand in what the filter sees."""
OTHER_ABI = 0x40000000
"""Numbers from here on are those of x32, a second way to make the same calls."""


def forbid_syscalls() -> list[str]:
    """Refuse the calls of this machine's row from now on (EPERM). What they are for; empty if it failed."""
    if sys.platform != "linux" or platform.machine() not in FORBIDDEN:
        return []
    machine, groups = FORBIDDEN[platform.machine()]
    program = _filter(machine, [number for numbers in groups.values() for number in numbers])
    letters = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(letters))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0
    ):
        return []
    return list(groups)


def _filter(machine: int, numbers: list[int]) -> bytes:
    """The program: calls of another machine or ABI and those listed are refused, all others allowed."""
    count = len(numbers)
    steps = [
        (LOAD, 0, 0, MACHINE_AT),
        (EQUAL, 0, count + 3, machine),  # steps to jump over: when equal, when not
        (LOAD, 0, 0, NUMBER_AT),
        (AT_LEAST, count + 1, 0, OTHER_ABI),
        *((EQUAL, count - place, 0, number) for place, number in enumerate(numbers)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
