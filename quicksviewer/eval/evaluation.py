"""One task, one model, one number of frames: what is to be done, the share of a process, the result."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quicksviewer.eval.answering import Answerer, make_batches
from quicksviewer.eval.identity import code_facts
from quicksviewer.eval.judge import Judge
from quicksviewer.eval.judging import judge_records
from quicksviewer.eval.records import Records
from quicksviewer.eval.summary import summarise
from quicksviewer.eval.task import Benchmark, Item

ON_LINES = ("plans", "records")
"""Parts of a result that are written one entry a line."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`settings`: everything that the answers depend on; the result begins with them."""

    task: Benchmark
    items: list[Item]
    out: Path
    settings: dict
    ahead: int = 2

    @property
    def records(self) -> Records:
        return Records(self.out.with_name(f"{self.out.name}.parts"))

    @cached_property
    def batches(self) -> list[list[Item]]:
        return make_batches(self.items, self.settings["batch_size"])

    def share(self, rank: int, world: int) -> list[int]:
        """Numbers of the batches that this process has still to do."""
        done = self.records.finished()
        return [number for number in range(rank, len(self.batches), world) if number not in done]

    def compute(
        self, loaded, numbers: list[int], rank: int, world: int, on_batch: Callable[[], None]
    ) -> None:
        """Answer batches; each is on the disk before the next one begins."""
        answerer = Answerer(
            loaded=loaded,
            task=self.task,
            prompt=self.settings["prompt"],
            ahead=self.ahead,
            blind=self.settings["blind"],
        )
        with self.records.writer(f"records-{rank + 1}-of-{world}") as writer:
            answered = answerer.answer([self.batches[number] for number in numbers])
            for number, (records, seconds) in zip(numbers, answered, strict=True):
                line = {"batch": number, "code": code_facts(), "seconds": seconds, "records": records}
                writer.write(line)
                on_batch()

    def close(self, judge: Judge | None, workers: int, on_verdict: Callable[[], None]) -> dict | None:
        """The result, written, when all batches are there; None when other processes are still at work, or
        another one has closed already. Raises JudgeError; what has been judged is kept."""
        kept = self.records
        with kept.closing() as is_mine:
            lines = kept.finished() if is_mine else {}
            if len(lines) < len(self.batches):
                return None
            lines = [lines[number] for number in range(len(self.batches))]
            records = [record for line in lines for record in line["records"]]
            judged = None
            if self.task.judges and judge is not None:
                items = {item.uid: item for item in self.items}
                judged = judge_records(self.task, items, records, judge, kept, workers, on_verdict)
            result = self._result(lines, records, judged)
            write_text(self.out, result_text(result))
            write_text(self.out.with_suffix(".timings.json"), json.dumps(timings(lines), indent=1) + "\n")
            if all(record["scores"] is not None for record in records):
                kept.discard()
        return result

    def _result(self, lines: list[dict], records: list[dict], judged: dict | None) -> dict:
        plans = {}
        for record in records:
            if (plan := record.pop("plan")) is not None:
                plans[record["clip"]] = plan
        readers = Counter(f"{plan['decoder']} {plan['decoder_version']}".strip() for plan in plans.values())
        policies = Counter(plan["policy"] for plan in plans.values())
        return {
            **self.settings,
            "code": sorted({line["code"] for line in lines}),
            "judge": judged,
            "decoders": dict(sorted(readers.items())),
            "frame_policies": dict(sorted(policies.items())),
            **summarise(records, self.task.metrics),
            "plans": plans,
            "records": records,
        }


def timings(lines: Iterable[dict]) -> dict:
    """Seconds over all batches and processes; the part of a result that differs from run to run."""
    total = Counter()
    for line in lines:
        total.update(line["seconds"])
    return {"seconds": {what: round(seconds, 3) for what, seconds in total.items()}}


def result_text(result: dict) -> str:
    """JSON that people can read and compare: a record is a line."""
    parts = []
    for key, value in result.items():
        if key in ON_LINES and value:
            names = [f"{json.dumps(name, ensure_ascii=False)}: " for name in value] if key == "plans" else []
            entries = value.values() if names else value
            rows = (json.dumps(entry, ensure_ascii=False) for entry in entries)
            rows = ",\n".join(
                f"  {name}{text}" for name, text in zip(names or [""] * len(value), rows, strict=True)
            )
            text = f"{{\n{rows}\n }}" if names else f"[\n{rows}\n ]"
        else:
            text = json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\n ")
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write_text(path: Path, text: str) -> None:
    """A reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
