"""Answers that were recorded are shown to a judge, several at a time; each verdict is kept when it comes."""

import ast
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from html import escape
from typing import Any

from quicksviewer.eval.judge import Judge
from quicksviewer.eval.records import Records
from quicksviewer.eval.task import Benchmark, Item, JudgePrompt

FIELD = re.compile(r"\{(question2?|reference|answer2?)\}")
MAX_UNREADABLE = 3
"""Times that a judge is asked whose reply nobody can read; then the answer is worth nothing, and counted."""
Verdict = dict[str, Any]


def judge_records(
    task: Benchmark,
    items: Mapping[str, Item],
    records: Sequence[dict],
    judge: Judge,
    kept: Records,
    workers: int,
    on_verdict: Callable[[], None],
) -> dict:
    """Write the scores of all records that were answered; what the result says of the judge.

    Raises JudgeError when the judge cannot be reached; verdicts that have come are kept for the next attempt.
    """
    known = {_key(verdict): verdict for verdict in kept.verdicts() if verdict["judge"] == _who(judge)}
    open_ = [r for r in records if r["scores"] is None]
    cases = [(record, prompt) for record in open_ for prompt in task.judges]
    missing = [case for case in cases if (case[0]["uid"], case[1].version) not in known]
    with kept.writer("judged") as writer:
        for verdict in _ask_all(missing, items, judge, workers, writer):
            known[_key(verdict)] = verdict
            on_verdict()
    for record in open_:
        verdicts = {prompt.version: known[record["uid"], prompt.version] for prompt in task.judges}
        record["judged"] = {name: {"reply": v["reply"], "read": v["read"]} for name, v in verdicts.items()}
        record["scores"] = {
            metric: (verdicts[prompt.version]["read"] or {}).get(metric, 0.0)
            for prompt in task.judges
            for metric in prompt.reads.values()
        }
    used = [known[record["uid"], prompt.version] for record, prompt in cases]
    return judge_facts(task, judge, used)


def judge_facts(task: Benchmark, judge: Judge, verdicts: Sequence[Verdict] = ()) -> dict:
    """What a result says of its judge: enough to ask it the same again."""
    return {
        "url": judge.url,
        "model": judge.model,
        "answered_as": sorted({verdict["model"] for verdict in verdicts}),
        "temperature": 0,
        "prompts": {prompt.version: {"system": prompt.system, "user": prompt.user} for prompt in task.judges},
        "unreadable": sum(verdict["read"] is None for verdict in verdicts),
    }


def _ask_all(cases, items, judge: Judge, workers: int, writer):
    """Verdicts in the order in which they come, each on the disk."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers)
    try:
        tasks = [pool.submit(_ask, judge, items[r["uid"]], r["answers"], prompt, stop) for r, prompt in cases]
        for done in as_completed(tasks):
            verdict = done.result()
            writer.write(verdict)
            yield verdict
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _ask(judge: Judge, item: Item, answers: Sequence[str], prompt: JudgePrompt, stop) -> Verdict:
    """One verdict. A reply that cannot be read is asked for again, a few times."""
    user, reply, model, read = write_case(prompt, item, answers), "", "", None
    for _ in range(MAX_UNREADABLE):
        if stop.is_set():
            break
        reply, model = judge.ask(prompt.system, user)
        if (read := read_reply(reply, prompt.reads)) is not None:
            break
    verdict = {"uid": item.uid, "version": prompt.version, "judge": _who(judge), "model": model}
    return verdict | {"reply": reply, "read": read}


def _key(verdict: Verdict) -> tuple[str, str]:
    return verdict["uid"], verdict["version"]


def _who(judge: Judge) -> str:
    return f"{judge.model} at {judge.url}"


def write_case(prompt: JudgePrompt, item: Item, answers: Sequence[str]) -> str:
    """The case of one item: its questions, right answers, and what was answered, which cannot leave its
    marks: it holds no `<` and no `>`."""
    texts = {"reference": " / ".join((item.answer, *item.references))}
    for number, (question, answer) in enumerate(zip(item.questions, answers, strict=True), start=1):
        end = "" if number == 1 else str(number)
        texts |= {f"question{end}": question, f"answer{end}": escape(answer, quote=False)}
    return FIELD.sub(lambda found: texts[found[1]], prompt.user)


def read_reply(reply: str, reads: Mapping[str, str]) -> dict[str, float] | None:
    """Metric -> value out of the last object in a reply; None where a key is missing or its value is none
    that was asked for."""
    for text in reversed(re.findall(r"\{[^{}]*\}", reply)):
        found = _mapping(text)
        values = {metric: VALUES[key](found.get(key)) for key, metric in reads.items()}
        if found and None not in values.values():
            return values
    return None


def _mapping(text: str) -> dict:
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _yes_or_no(said: Any) -> float | None:
    said = {True: "yes", False: "no"}.get(said, said) if isinstance(said, bool) else said
    return {"yes": 1.0, "no": 0.0}.get(said.strip().lower()) if isinstance(said, str) else None


def _points(said: Any) -> float | None:
    """A number from 0 to 5, also as text."""
    try:
        number = float(said)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 5 and not isinstance(said, bool) else None


VALUES: dict[str, Callable[[Any], float | None]] = {"correct": _yes_or_no, "score": _points}
"""Key of a reply -> what its value may be."""
