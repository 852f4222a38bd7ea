"""Items become records: clips are decoded ahead, each is encoded once, questions are answered in batches.

A batch is the same items whoever computes it, and a clip is encoded by itself, so that an answer depends on
neither the number of processes nor on where a stopped run went on.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch

from quicksviewer.conversation import Turn
from quicksviewer.eval.task import Benchmark, Item, Score, write_prompts
from quicksviewer.model.llava_arch import EncodedMedia, Media
from quicksviewer.utils.data_util import MediaError
from quicksviewer.utils.generation import GREEDY


def make_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Items in batches, those about one clip next to each other."""
    items = sorted(items, key=lambda item: item.clip)
    return [items[at : at + size] for at in range(0, len(items), size)]


@dataclass
class Clock:
    """Seconds of a batch: waiting for clips, encoding them, generating."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("wait", "encode", "generate"), 0.0)
    )

    def measure(self, what: str, function: Callable, *args):
        began = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.seconds[what] += time.perf_counter() - began


@dataclass(frozen=True)
class Clip:
    """What is known of a clip: what it became for the language model, its frame plan; or why it could not be
    read."""

    name: str
    medium: Any = None
    error: str | None = None
    seen: EncodedMedia | None = None
    noise: EncodedMedia | None = None


@dataclass(kw_only=True)
class Answerer:
    """Answers batches of items. `loaded`: as the loader gives it; `prompt`: the task's, or another one;
    `ahead`: clips that are decoded while the model works; `blind`: ask everything again with noise for
    frames."""

    loaded: Any
    task: Benchmark
    prompt: str
    ahead: int = 2
    blind: bool = False
    synced: bool = False
    """Under ZeRO-3: all processes answer the same batches, step by step."""

    def answer(self, batches: Sequence[list[Item]]) -> Iterator[tuple[list[dict], dict[str, float]]]:
        """The records of each batch, and the seconds it took."""
        first = [next(same) for _, same in groupby((i for b in batches for i in b), lambda item: item.clip)]
        clips, clip = load_ahead(self._load, first, self.ahead), Clip("")
        for batch in batches:
            clock, asked = Clock(), []
            for item in batch:
                if item.clip != clip.name:
                    clip = clock.measure("wait", next, clips)
                    clip = clock.measure("encode", self._encode, clip)
                asked.append((item, clip))
            yield self._records(asked, clock), clock.seconds

    def _load(self, item: Item) -> Clip:
        try:
            medium = self.loaded.processor.load_video(item.video, item.start, item.end)
        except (MediaError, ValueError) as error:
            return Clip(item.clip, error=str(error))
        return Clip(item.clip, medium)

    @torch.no_grad()
    def _encode(self, clip: Clip) -> Clip:
        """The clip as the language model reads it; its pixels are not needed any more."""
        if clip.error is not None:
            return clip
        medium = clip.medium
        seen = self._see(medium.pixels, medium.times)
        noise = self._see(noise_like(medium.pixels, clip.name), medium.times) if self.blind else None
        no_pixels = medium.pixels.new_empty(0, *medium.pixels.shape[1:])
        small = type(medium)(medium.mark, no_pixels, medium.times, plan=medium.plan)
        return Clip(clip.name, small, None, seen, noise)

    def _see(self, pixels, times) -> EncodedMedia:
        device = self.loaded.model.device
        return self.loaded.model.encode_media(
            Media(pixels.to(device), times.to(device), [len(times)], [True])
        )

    def _records(self, asked: list[tuple[Item, Clip]], clock: Clock) -> list[dict]:
        """Records of a batch; what cannot be asked is an error of its record."""
        records, rows = [], []
        for item, clip in asked:
            record = unanswered(item, self.blind)
            records.append(record)
            try:
                if clip.error is not None:
                    raise ValueError(clip.error)
                record["prompts"] = write_prompts(self.prompt, item, clip.medium.plan.times)
                record["plan"] = asdict(clip.medium.plan)
                rows += [(record, clip, self._row(prompt, clip)) for prompt in record["prompts"]]
            except ValueError as error:
                record["error"] = f"{item.where}: {error}"
        for which, prefix in (("seen", ""), ("noise", "blind_"))[: 1 + self.blind]:
            given = [getattr(clip, which) for _, clip, _ in rows]
            answers = clock.measure("generate", self._generate, [row for *_, row in rows], given)
            for (record, *_), answer in zip(rows, answers, strict=True):
                record[f"{prefix}answers"].append(answer)
        for (item, _), record in zip(asked, records, strict=True):
            score_record(self.task, item, record)
        return records

    def _row(self, prompt: str, clip: Clip) -> list[int]:
        """Ids of a question. ValueError for one that cannot be asked."""
        row = self.loaded.processor.encode_turns(
            [Turn("user", f"<video>\n{prompt}")], [clip.medium], generation=True
        )
        length, room = len(row["input_ids"]) + self.task.max_new_tokens, self.loaded.context_length
        if length > room:
            raise ValueError(f"question and answer take {length} tokens, the model has room for {room}")
        return row["input_ids"]

    def _generate(self, rows: list[list[int]], seen: list[EncodedMedia]) -> list[str]:
        """Greedy answers to rows. An answer ends at its first stop id: what follows it is padding, whose id
        may be that of a word."""
        if not rows:
            return []
        processor, model = self.loaded.processor, self.loaded.model
        batch = processor.batch([{"input_ids": row} for row in rows]).to(model.device)
        joined = (torch.cat([getattr(one, name) for one in seen]) for name in ("visual", "times", "keep"))
        out = model.generate(
            **batch,
            encoded_media=EncodedMedia(*joined, cuts=None),
            max_new_tokens=self.task.max_new_tokens,
            eos_token_id=processor.stop_ids,
            pad_token_id=processor.pad_id,
            synced_gpus=self.synced,
            use_cache=True,
            **GREEDY,
        )
        stops, answers = set(processor.stop_ids), []
        for ids in out[:, batch["input_ids"].shape[1] :].tolist():
            ends = [place for place, token in enumerate(ids) if token in stops]
            answers.append(
                processor.tokenizer.decode(
                    ids[: ends[0]] if ends else ids,
                    skip_special_tokens=True,
                    clean_up_tokenization_spaces=False,
                ).strip()
            )
        return answers


def load_ahead(load: Callable[[Item], Clip], items: Sequence[Item], ahead: int) -> Iterator[Clip]:
    """`load` of each item, in order; while one is used, `ahead` others are under way or done."""
    if ahead == 0:
        yield from map(load, items)
        return
    pool, rest = ThreadPoolExecutor(ahead), iter(items)
    try:
        waiting = deque(pool.submit(load, item) for item in islice(rest, ahead))
        while waiting:
            waiting.extend(pool.submit(load, item) for item in islice(rest, 1))
            yield waiting.popleft().result()  # kept nowhere else: its pixels are the largest thing here
    finally:
        pool.shutdown(cancel_futures=True)


def noise_like(pixels: torch.Tensor, clip: str) -> torch.Tensor:
    """Uniform noise in place of frames, drawn from the name of the clip, wherever its folder lies."""
    seed = int.from_bytes(hashlib.sha256(Path(clip).name.encode()).digest()[:7], "big")
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, pixels.shape, dtype=torch.uint8, generator=draw)


def unanswered(item: Item, blind: bool) -> dict:
    """The record of an item that has no answer, which is wrong."""
    record = {"uid": item.uid, "kind": item.kind, "groups": dict(item.groups), "clip": item.clip}
    record |= {"video": str(item.video), "expected": item.answer, "chance": item.chance, "prompts": []}
    record |= {"plan": None, "error": None, "answers": [], "read": None, "scores": None}
    return record | ({"blind_answers": [], "blind_read": None, "blind_scores": None} if blind else {})


def score_record(task: Benchmark, item: Item, record: dict) -> None:
    """Write the scores of a record's answers into it; those of a judge come later. No answer is worth
    nothing."""
    for prefix in ("", "blind_")[: 1 + ("blind_scores" in record)]:
        answers = record[f"{prefix}answers"]
        if len(answers) != len(item.questions) or not all(map(str.strip, answers)):
            score = Score(dict.fromkeys(task.metrics, 0.0), None)
        elif task.score is None:
            score = Score(None, "\n".join(answers))
        else:
            score = task.score(item, answers)
        record[f"{prefix}scores"], record[f"{prefix}read"] = score.values, score.read
