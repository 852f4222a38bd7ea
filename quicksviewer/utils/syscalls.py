"""System calls that a process forbids itself for good (Linux): network, programs, processes, changing files.

A seccomp filter needs no privileges. Where the system or the processor is another one, nothing is forbidden,
and the caller is told so. It sees numbers and no names: which files may be read is `landlock.py`'s.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

REFUSED = {
    "network": "socket connect bind listen io_uring_setup",
    "programs": "execve execveat fork vfork",
    "processes": (
        "kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd ptrace "
        "process_vm_readv process_vm_writev process_madvise kcmp perf_event_open bpf userfaultfd "
        "unshare setns mount umount2 pivot_root chroot"
    ),
    "changing files": (
        "creat openat2 open_by_handle_at truncate ftruncate fallocate rename renameat renameat2 link linkat "
        "symlink symlinkat unlink unlinkat mkdir mkdirat rmdir mknod mknodat chmod fchmod fchmodat fchmodat2 "
        "chown fchown lchown fchownat utime utimes futimesat utimensat "
        "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"
    ),
}
"""What calls are for -> their names. A machine may not have all of them."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
THREAD = 0x00010000
"""CLONE_THREAD: not a new process."""
REFUSED_WHERE = (
    ("changing files", "open", 1, "any bit", lambda: WRITING),
    ("changing files", "openat", 2, "any bit", lambda: WRITING),
    ("programs", "clone", 0, "no bit", lambda: THREAD),
    ("processes", "tgkill", 0, "another", os.getpid),
    ("processes", "prlimit64", 0, "another", lambda: 0),
)
"""Calls that depend on an argument: what for, name, which argument, when it is refused, held to what."""
UNKNOWN = ("clone3",)
"""Their arguments lie in memory, where no filter sees them; without them libraries take older ones."""

NUMBERS = {
    "x86_64": (
        0xC000003E,
        (
            "open=2 clone=56 fork=57 vfork=58 execve=59 kill=62 truncate=76 ftruncate=77 rename=82 "
            "mkdir=83 rmdir=84 creat=85 link=86 unlink=87 symlink=88 chmod=90 fchmod=91 chown=92 "
            "fchown=93 lchown=94 ptrace=101 rt_sigqueueinfo=129 utime=132 mknod=133 pivot_root=155 "
            "chroot=161 mount=165 umount2=166 setxattr=188 lsetxattr=189 fsetxattr=190 removexattr=197 "
            "lremovexattr=198 fremovexattr=199 tkill=200 tgkill=234 utimes=235 openat=257 mkdirat=258 "
            "mknodat=259 fchownat=260 futimesat=261 unlinkat=263 renameat=264 linkat=265 symlinkat=266 "
            "fchmodat=268 unshare=272 utimensat=280 fallocate=285 rt_tgsigqueueinfo=297 "
            "perf_event_open=298 prlimit64=302 open_by_handle_at=304 setns=308 process_vm_readv=310 "
            "process_vm_writev=311 kcmp=312 renameat2=316 bpf=321 execveat=322 userfaultfd=323 socket=41 "
            "connect=42 bind=49 listen=50 pidfd_send_signal=424 io_uring_setup=425 pidfd_open=434 "
            "clone3=435 openat2=437 pidfd_getfd=438 process_madvise=440 fchmodat2=452"
        ),
    ),
    "aarch64": (
        0xC00000B7,
        (
            "setxattr=5 lsetxattr=6 fsetxattr=7 removexattr=14 lremovexattr=15 fremovexattr=16 mknodat=33 "
            "mkdirat=34 unlinkat=35 symlinkat=36 linkat=37 renameat=38 umount2=39 mount=40 pivot_root=41 "
            "truncate=45 ftruncate=46 fallocate=47 chroot=51 fchmod=52 fchmodat=53 fchownat=54 fchown=55 "
            "openat=56 utimensat=88 unshare=97 ptrace=117 kill=129 tkill=130 tgkill=131 "
            "rt_sigqueueinfo=138 socket=198 bind=200 listen=201 connect=203 clone=220 execve=221 "
            "rt_tgsigqueueinfo=240 perf_event_open=241 prlimit64=261 open_by_handle_at=265 setns=268 "
            "process_vm_readv=270 process_vm_writev=271 kcmp=272 renameat2=276 bpf=280 execveat=281 "
            "userfaultfd=282 pidfd_send_signal=424 io_uring_setup=425 pidfd_open=434 clone3=435 "
            "openat2=437 pidfd_getfd=438 process_madvise=440 fchmodat2=452"
        ),
    ),
}
"""Machine -> its number in the kernel's audit, and the numbers of its calls."""

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions of the classic packet filter."""
ALLOW, REFUSE, NO_SUCH_CALL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16
"""Where the call's number, the machine and the arguments (8 bytes each) stand in what the filter sees."""
OTHER_ABI = 0x40000000
"""Numbers from here on are those of x32, a second way to make the same calls."""
TESTS = {"any bit": (ANY_BIT, 0, 1), "no bit": (ANY_BIT, 1, 0), "another": (EQUAL, 1, 0)}
"""When -> instruction, steps over the refusal that follows when it holds, and when not."""


def forbid_syscalls() -> list[str]:
    """Refuse the calls of the tables from now on (EPERM). What they are for; empty if it failed."""
    if sys.platform != "linux" or platform.machine() not in NUMBERS:
        return []
    program = _filter(*NUMBERS[platform.machine()])
    letters = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(letters))
    filter_from_now = PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0
    return [] if give_up_privileges() or libc().prctl(*filter_from_now) else list(REFUSED)


def give_up_privileges() -> int:
    """Programs bring none from now on, which the kernel asks of who restricts itself. 0: it is so."""
    return libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _filter(machine: int, calls: str) -> bytes:
    """The program: calls of another machine or ABI and those of the tables are refused, others allowed."""
    numbers = {name: int(number) for name, _, number in (call.partition("=") for call in calls.split())}
    steps = [(LOAD, 0, 0, MACHINE_AT), (EQUAL, 1, 0, machine), (RETURN, 0, 0, REFUSE)]
    steps += [(LOAD, 0, 0, NUMBER_AT), (AT_LEAST, 0, 1, OTHER_ABI), (RETURN, 0, 0, REFUSE)]
    for name in " ".join(REFUSED.values()).split():
        steps += _always(numbers.get(name), REFUSE)
    for name in UNKNOWN:
        steps += _always(numbers.get(name), NO_SUCH_CALL)
    for _, name, place, when, value in REFUSED_WHERE:
        steps += _where(numbers.get(name), place, when, value())
    return b"".join(struct.pack("HBBI", *step) for step in [*steps, (RETURN, 0, 0, ALLOW)])


def _always(number: int | None, answer: int) -> list[tuple]:
    return [] if number is None else [(EQUAL, 0, 1, number), (RETURN, 0, 0, answer)]


def _where(number: int | None, place: int, when: str, value: int) -> list[tuple]:
    """Of an argument the lower half alone: the kernel takes no more of these."""
    if number is None:
        return []
    test, holds, fails = TESTS[when]
    half = ARGUMENTS_AT + 8 * place
    steps = [(LOAD, 0, 0, half), (test, holds, fails, value), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return [(EQUAL, 0, len(steps), number), *steps]
