"""Look at every row of a data set as training would, and say which cannot be used, and why.

    python -m quicksviewer data check --recipe tiny --stage stage2
    python -m quicksviewer data check --data rows.jsonl --model output/tiny/stage3

Each row is parsed, its media are decoded, the real processor renders it. Writes report.json and report.html
into --out, and bad rows into the ledger that training reads (its own, or --quarantine).
Exit code: 0 every row can be used, 1 some cannot, 2 wrong usage or files that are missing.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.data.ledger import BadRow, KnownBad
from quicksviewer.data.mixture import spread_subset
from quicksviewer.data.preprocess import SampleError
from quicksviewer.survey.report import write_html, write_json
from quicksviewer.survey.subject import Subject, add_arguments, read_subject
from quicksviewer.survey.uids import Uids
from quicksviewer.survey.view import View, view_of
from quicksviewer.utils.data_util import MediaError

AT_ONCE = 8
"""Rows that a process hands over at a time."""


@dataclass(frozen=True)
class Verdict:
    """What was found out about a row. `bad` is its line in the ledger, None where it can be used."""

    index: int
    where: str
    uid: str | None = None
    source: str = ""
    modality: str = ""
    tokens: int = 0
    learned: int = 0
    frames: int = 0
    bad: BadRow | None = None
    view: View | None = None


@dataclass(frozen=True)
class Findings:
    """All rows in order, and the places where an id is used a second time: (again, first, uid)."""

    verdicts: list[Verdict]
    twice: list[tuple[str, str, str]]

    @property
    def bad(self) -> list[BadRow]:
        return [verdict.bad for verdict in self.verdicts if verdict.bad is not None]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="quicksviewer data check", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--samples", type=int, default=12, help="rows that the report shows with frames")
    parser.add_argument("--quarantine", help="ledger to read and write (default: that of the run)")
    parser.add_argument(
        "--duplicates", choices=["warn", "refuse"], default="refuse", help="what a row is whose id is taken"
    )
    args, rest = parser.parse_known_args(argv)
    try:
        subject = read_subject(args, rest)
        ledger = Path(args.quarantine) if args.quarantine else subject.ledger
    except (ValueError, OSError, MediaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    findings = check(subject, ledger, args.workers, args.samples, args.duplicates == "refuse")
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", subject, findings, ledger)
    write_html(folder / "report.html", subject, findings, ledger)
    bad = len(findings.bad)
    print(f"{subject.name}: {len(findings.verdicts) - bad} of {len(findings.verdicts)} rows can be used")
    if findings.twice:
        print(f"{len(findings.twice)} rows have the id of another row")
    print(f"report: {folder / 'report.html'}" + (f"   ledger: {ledger}" if bad else ""))
    return 1 if bad else 0


def check(
    subject: Subject, ledger: Path, workers: int = 0, samples: int = 0, refuse_twice: bool = False
) -> Findings:
    """Look at every row. `samples` of them, spread over the data, carry what is needed to show them."""
    data = subject.dataset(ledger)
    shown = frozenset(spread_subset(len(data), min(samples, len(data))).tolist())
    verdicts, twice, uids = [], [], Uids()
    for verdict in progress(looked_at(Judged(data, shown), workers), len(data), "rows"):
        if verdict.uid is not None:
            at = uids.first(verdict.where.rpartition(":")[0], verdict.uid, verdict.index)
            first = data.mixture.where(at)
            if first != verdict.where:
                twice.append((verdict.where, first, verdict.uid))
                verdict = _refused(data, verdict, first) if refuse_twice and not verdict.bad else verdict
        verdicts.append(verdict)
    return Findings(verdicts, twice)


def _refused(data: LazySupervisedDataset, verdict: Verdict, first: str) -> Verdict:
    """A row whose id is taken, as a bad one."""
    error = SampleError(verdict.where, f"uid {verdict.uid!r} is that of {first}")
    bad = data.describe(verdict.index, error, by="check")
    data.ledger.add(bad)
    return Verdict(verdict.index, verdict.where, verdict.uid, bad=bad)


class Judged(Dataset):
    """Verdicts in the place of rows; those with an index in `shown` have a view."""

    def __init__(self, data: LazySupervisedDataset, shown: frozenset[int]):
        self.data, self.shown = data, shown

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Verdict:
        try:
            return self._usable(index, self.data.load_at(index))
        except (SampleError, MediaError) as error:
            return self._bad(index, error)
        except Exception as error:  # whatever would end a run is told with its row
            return self._bad(index, SampleError("", f"{type(error).__name__}: {error}"))

    def _usable(self, index: int, row: dict) -> Verdict:
        record, where = self.data.mixture[index]
        source, modality = (group.partition("/")[2] for group in row["groups"][0])
        return Verdict(
            index=index,
            where=where,
            uid=record["uid"],
            source=source,
            modality=modality,
            tokens=len(row["input_ids"]),
            learned=sum(label != IGNORE_INDEX for label in row["labels"]),
            frames=len(row.get("frame_times", ())),
            view=view_of(row, self.data.processor) if index in self.shown else None,
        )

    def _bad(self, index: int, error: Exception) -> Verdict:
        bad = self.data.describe(index, error, by="check")
        if not isinstance(error, KnownBad):
            self.data.ledger.add(bad)
        return Verdict(index, bad.where, bad.uid, bad=bad)


def looked_at(dataset: Dataset, workers: int) -> Iterator:
    """All items of a data set in order, from so many processes; 0: from this one."""
    start = {"multiprocessing_context": "fork", "worker_init_fn": _one_thread} if workers else {}
    loader = DataLoader(dataset, batch_size=AT_ONCE, num_workers=workers, collate_fn=list, **start)
    for batch in loader:
        yield from batch


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def progress(items: Iterator, total: int, what: str) -> Iterator:
    """The items, with a bar on the terminal; in a file or pipe there is none."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, total, console=console, disable=not console.is_terminal, transient=True)


if __name__ == "__main__":
    sys.exit(main())
