"""What this machine has, what is missing, and what to do about it.

    python -m quicksviewer doctor

Ends with 1 when something is missing that every run needs.
"""

import argparse
import os
import platform
import re
import sys
import tomllib
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

PACKAGE = "quicksviewer"
FIRST = ("torch", "transformers", "deepspeed", "av")
"""Needed packages that people ask about; they lead the table."""

PATCHED_LIBAVCODEC = (62, 28)
"""That of FFmpeg 8.1."""
FFMPEG_ADVICE = {
    "av": "pip install --upgrade av, or one that is built on a patched FFmpeg",
    "decord": "for media that you do not trust use --video_decoder av",
}


@dataclass(frozen=True)
class Finding:
    """A row: what was looked for, what was found, and what to do where it is not `ok`."""

    what: str
    found: str
    state: Literal["ok", "absent", "warning", "missing"] = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Requirement:
    """A package that the metadata names; without an extra it is always needed."""

    name: str
    range: str
    extra: str | None = None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quicksviewer doctor", description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    findings = examine()
    show(findings)
    missing = [finding.what for finding in findings if finding.state == "missing"]
    if missing:
        print(f"missing: {', '.join(missing)}")
    return 1 if missing else 0


def examine() -> list[Finding]:
    """All rows of the table, in its order."""
    requirements = read_requirements()
    needed = [r for r in requirements if r.extra is None]
    needed.sort(key=lambda r: (FIRST.index(r.name) if r.name in FIRST else len(FIRST), r.name))
    return [
        Finding("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        *(check_package(requirement) for requirement in needed),
        *check_accelerators(),
        Finding("cores", str(usable_cores())),
        Finding("memory", f"{memory_bytes() / 2**30:.1f} GiB"),
        *check_torchvision(),
        *check_decoders(),
        *check_ffmpeg(),
        *check_sandbox(),
        *check_extras([r for r in requirements if r.extra is not None]),
    ]


# --- packages ---


def read_requirements() -> list[Requirement]:
    """What the installed package declares; in a checkout that is not installed, its pyproject.toml."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        lines = _requirements_of_checkout()
    parsed = (_parse(line) for line in lines)
    return [r for r in parsed if r is not None and r.name != PACKAGE]


def _requirements_of_checkout() -> list[str]:
    path = Path(__file__).resolve().parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"].items()
    return project["dependencies"] + [f'{r} ; extra == "{extra}"' for extra, rs in optional for r in rs]


def _parse(line: str) -> Requirement | None:
    """A line such as `av>=15 ; extra == "video"`; None where the platform rules it out."""
    specifier, _, marker = line.partition(";")
    machine = re.search(r"platform_machine\s*==\s*['\"](\w+)['\"]", marker)
    if machine and machine[1] != platform.machine():
        return None
    name, wanted = re.match(r"\s*([\w.-]+)(?:\[[^]]*\])?\s*(.*)", specifier).groups()
    extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
    return Requirement(name, wanted.strip(), extra[1] if extra else None)


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_in_range(version: str, wanted: str) -> bool:
    """Whether a version lies in a range. Without the package that can compare them, any version does."""
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)


def check_package(requirement: Requirement) -> Finding:
    name, wanted = requirement.name, requirement.range
    version = installed_version(name)
    install = f"pip install '{name}{wanted}'"
    if version is None:
        return Finding(name, "not installed", "missing", install)
    if not is_in_range(version, wanted):
        return Finding(name, f"{version}, outside {wanted}", "missing", install)
    return Finding(name, version)


def check_extras(requirements: list[Requirement]) -> list[Finding]:
    """One row per extra; what it lacks stops nothing but the feature it is for."""
    by_extra: dict[str, list[str]] = {}
    for requirement in requirements:
        by_extra.setdefault(requirement.extra, []).append(requirement.name)
    rows = []
    for extra, names in by_extra.items():
        versions = {name: installed_version(name) for name in names}
        found = ", ".join(f"{name} {version or '-'}" for name, version in versions.items())
        is_whole = all(versions.values())
        advice = "" if is_whole else f"pip install '{PACKAGE}[{extra}]'"
        rows.append(Finding(f"extra {extra}", found, "ok" if is_whole else "absent", advice))
    return rows


def check_torchvision() -> list[Finding]:
    """Not needed; but one that is there and cannot be imported breaks the import of transformers' models."""
    if find_spec("torchvision") is None:
        return []
    try:
        module = import_module("torchvision")
    except Exception as error:  # a binary of another torch fails in many ways: each is the finding
        text = f"found, but its import fails: {type(error).__name__}: {error}"
        advice = "it was built for another torch, and transformers fails with it: pip uninstall torchvision"
        return [Finding("torchvision", text, "missing", advice)]
    return [Finding("torchvision", module.__version__)]


def check_decoders() -> list[Finding]:
    """The video decoders that can be chosen. A package may be installed and not load."""
    try:
        from quicksviewer.utils.data_util import VIDEO_READERS, why_unusable
    except ImportError:
        return []  # a needed package is missing, which its own row says
    reasons = {name: why_unusable(name) for name in VIDEO_READERS}
    usable = [name for name, reason in reasons.items() if reason is None]
    rest = " ".join(f"{name}: {reason}." for name, reason in reasons.items() if reason is not None)
    return [Finding("video decoders", ", ".join(usable), "absent" if rest else "ok", rest)]


def check_ffmpeg() -> list[Finding]:
    """Which FFmpeg the decoders bring. torchcodec takes the machine's, which its distribution patches."""
    found = {"av": _libavcodec_of_av(), "decord": _libavcodec_of_decord()}
    return [_judged(name, version) for name, version in found.items() if version]


def _judged(decoder: str, version: tuple[int, ...]) -> Finding:
    told = f"libavcodec {'.'.join(map(str, version))}"
    if version >= PATCHED_LIBAVCODEC:
        return Finding(f"ffmpeg of {decoder}", told)
    advice = f"older than FFmpeg 8.1, whose holes are known: {FFMPEG_ADVICE[decoder]}"
    return Finding(f"ffmpeg of {decoder}", told, "warning", advice)


def _libavcodec_of_av() -> tuple[int, ...] | None:
    try:
        import av
    except ImportError:
        return None
    return av.library_versions.get("libavcodec")


def _libavcodec_of_decord() -> tuple[int, ...] | None:
    """From the name of the library that its wheel brings: it does not tell by itself."""
    names = (file.name for file in _files_of("decord"))
    found = (re.match(r"libavcodec(?:-\w+)?\.so\.(\d+(?:\.\d+)*)", name) for name in names)
    return next((tuple(map(int, match[1].split("."))) for match in found if match), None)


def _files_of(package: str) -> list[metadata.PackagePath]:
    try:
        return metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []


def check_sandbox() -> list[Finding]:
    """What a decoding child gives up on this machine."""
    from quicksviewer.utils import landlock, syscalls

    is_known = sys.platform == "linux" and platform.machine() in syscalls.NUMBERS
    given_up = [*(syscalls.REFUSED if is_known else ()), *(["reading files"] if landlock.version() else ())]
    lacks = [] if is_known else ["no filter of system calls for this system or processor"]
    lacks += [] if landlock.version() else ["the kernel has no Landlock: decoders may read what you may"]
    said = ", ".join(given_up) or "nothing"
    return [Finding("decoders are kept from", said, "warning" if lacks else "ok", "; ".join(lacks))]


# --- machine ---


def check_accelerators() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("accelerators", f"unknown: torch cannot be imported: {error}", "warning")]
    if torch.cuda.is_available():
        cards = enumerate(map(torch.cuda.get_device_properties, range(torch.cuda.device_count())))
        return [Finding(f"gpu {i}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB") for i, card in cards]
    if torch.backends.mps.is_available():
        return [Finding("accelerators", "Apple MPS")]
    return [Finding("accelerators", "none: everything runs on the CPU, use a small recipe")]


def usable_cores() -> int:
    """Cores this process may run on, which a container can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(limit_file: str = "/sys/fs/cgroup/memory.max") -> int:
    """Memory of the machine, or the container's limit where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path = Path(limit_file)
    limit = path.read_text().strip() if path.is_file() else "max"
    return min(total, int(limit)) if limit.isdigit() else total


# --- table ---

COLOURS = {"ok": "green", "absent": "dim", "warning": "yellow", "missing": "red"}


def show(findings: list[Finding]) -> None:
    """A table on the screen, and plain lines where rich itself is among the missing."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ModuleNotFoundError:
        for f in findings:
            print(f"{f.state:8} {f.what}: {f.found} {f.advice}".rstrip())
        return
    table = Table("", "found", "state", "what to do")
    for f in findings:
        table.add_row(f.what, escape(f.found), f"[{COLOURS[f.state]}]{f.state}[/]", escape(f.advice))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
