"""What tests ask of decoding children: their limits, which there are, what is open."""

import os
from pathlib import Path

from quicksviewer.utils.data_util import MediaLimits

LIMIT = 2.0
CHILD = MediaLimits(isolation="process", decode_seconds=LIMIT, decode_memory=2**28)


def open_files() -> list[str]:
    """What this process has open of media and of children."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    found = sorted(os.readlink(link) for link in links if link.is_symlink())
    return [name for name in found if name.startswith(("/memfd:medium", "socket:")) or "good" in name]


def children() -> list[int]:
    """Processes that were started by this one, zombies too; but for those that multiprocessing keeps."""
    pids = [int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    kept = (b"resource_tracker", b"forkserver")
    return [pid for pid in pids if not any(name in command_of(pid) for name in kept)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def named(clip: Path, name: str) -> Path:
    path = clip.with_name(name)
    if not path.exists():
        path.write_bytes(clip.read_bytes())
    return path
