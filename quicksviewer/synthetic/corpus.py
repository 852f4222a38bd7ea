"""Worlds become data sets: mp4 files, pictures, and JSONL rows in the project's own schema.

Every row is a pure function of (split, index), so that the same settings give the same bytes on every
machine.
"""

import json
import multiprocessing
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from quicksviewer.constants import IMAGE_MARK, VIDEO_MARK
from quicksviewer.synthetic.questions import FORMS, KINDS, Question, ask, caption, cubed_timeline, timeline
from quicksviewer.synthetic.video import draw_frame, draw_video, write_video
from quicksviewer.synthetic.world import BACKGROUNDS, World, WorldConfig, draw_world

SPLITS = {"train": 0, "held_out": 1_000_000, "text": 2_000_000}
"""Split -> first seed of its worlds. Seeds of different splits never meet."""
ASK_WHEN, ASK_WHAT, ASK_SEEN = "What happens when?", "What happens?", "What is seen?"
MORE_OFTEN = ("colour_at", "colour_at", "colour_at", "after", "after", "motion", "shape", "order", "order")
"""Kinds with an argument are asked several times of one video."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How much of everything there is."""

    videos: int = 4000
    held_out: int = 64
    images: int = 1000
    texts: int = 1500
    questions: int = 12
    """Of a training video, in one conversation."""
    frames_per_cube: float = 3.0
    """Of the written stand-in for a visual stream in text-only rows."""

    def __post_init__(self):
        if min(self.videos, self.held_out, self.images, self.texts, self.questions) < 1:
            raise ValueError(f"every count must be at least 1, got {self}")


def rng_of(*words) -> random.Random:
    """A generator of its own for every purpose and index."""
    return random.Random(" ".join(map(str, words)))


def some_questions(world: World, rng: random.Random, count: int) -> list[Question]:
    """Up to `count` different questions of mixed kinds and forms."""
    kinds = [*KINDS, *MORE_OFTEN]
    rng.shuffle(kinds)
    found: dict[str, Question] = {}
    for kind in kinds:
        if len(found) < count and (question := ask(world, kind, rng)) is not None:
            form = rng.choices(("open", "choice"), (0.85, 0.15))[0]
            found.setdefault(question.text, FORMS[form](question, rng))
    return list(found.values())


def as_dialogue(opening: str, pairs: list[tuple[str, str]]) -> list[dict]:
    """Questions and answers as the turns of a row; `opening` (marks, or text to read) stands before the
    first."""
    turns = []
    for place, (question, answer) in enumerate(pairs):
        text = f"{opening}{question}" if place == 0 else question
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return turns


def _with_timeline(world: World, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Questions and the dense caption, which comes first or last: the questions must be answered without it
    too."""
    pairs = [(question.text, question.answer) for question in some_questions(world, rng, count)]
    pairs.insert(0 if rng.random() < 0.25 else len(pairs), (ASK_WHEN, timeline(world)))
    return pairs


def video_row(split: str, index: int, world: World, count: int) -> dict:
    """A video with its dense caption and questions, in one conversation."""
    rng = rng_of("video", split, index, count)
    pairs = _with_timeline(world, rng, count)
    return {
        "uid": f"world_{split}_{index}",
        "data_type": "conversations",
        "video": f"videos/{split}/{index:05d}.mp4",
        "conversations": as_dialogue(f"{VIDEO_MARK}\n", pairs),
        "source": "world",
    }


def caption_row(split: str, index: int, world: World) -> dict:
    """A video and when what happens."""
    return video_row(split, index, world, 0)


def text_row(index: int, config: WorldConfig, corpus: CorpusConfig) -> dict:
    """A written stand-in for a visual stream, with questions: what a language model knows before it sees."""
    world = draw_world(SPLITS["text"] + index, config)
    rng = rng_of("text", index)
    pairs = _with_timeline(world, rng, corpus.questions)
    stream = cubed_timeline(world, _some_cuts(world, rng, corpus.frames_per_cube))
    return {
        "uid": f"text_{index}",
        "data_type": "conversations",
        "conversations": as_dialogue(f"{stream}\n", pairs),
        "source": "text",
    }


def _some_cuts(world: World, rng: random.Random, frames_per_cube: float) -> list[int]:
    """Seconds at which cubes begin: where events do, as far as they go, and then anywhere."""
    count = min(max(round(world.seconds / frames_per_cube), 2), world.seconds)
    anywhere = rng.sample(range(1, world.seconds), world.seconds - 1)
    places = [*world.boundaries, *(second for second in anywhere if second not in world.boundaries)]
    return sorted({0, *places[: count - 1]})


def image_row(index: int, config: WorldConfig) -> dict:
    """One to three pictures, each described: every third row is a multi-image one, every third an interleaved
    document."""
    rng = rng_of("image", index)
    paths, words = [], []
    for part in range(1 if index % 3 == 0 else rng.randint(2, 3)):
        event = rng.choice(draw_world(SPLITS["text"] + 3 * index + part, config).events)
        paths.append(f"images/{index:05d}_{part}.png")
        words.append(f"{event.colour} {event.shape}" + (f" {event.word}" if event.word else ""))
    row = {"uid": f"image_{index}", "image": paths if len(paths) > 1 else paths[0], "source": "image"}
    if index % 3 == 2:
        mixed = [entry for path in paths for entry in (path, None)]
        said = [entry for word in words for entry in (None, word)]
        return {**row, "data_type": "interleave", "image": mixed, "caption": said}
    marks = IMAGE_MARK * len(paths)
    return {
        **row,
        "data_type": "conversations",
        "conversations": as_dialogue(f"{marks}\n", [(ASK_SEEN, ", then ".join(words))]),
    }


def write_image_files(folder: Path, index: int, config: WorldConfig) -> None:
    """The pictures of `image_row(index)`, drawn again from the same generator."""
    rng = rng_of("image", index)
    for part in range(1 if index % 3 == 0 else rng.randint(2, 3)):
        event = rng.choice(draw_world(SPLITS["text"] + 3 * index + part, config).events)
        draw_frame(event, event.start, config.size).save(folder / f"images/{index:05d}_{part}.png")


def question_rows(split: str, count: int, config: WorldConfig) -> Iterator[dict]:
    """Held-out questions, one a row: every kind of every video, openly and with named options."""
    for index in range(count):
        world = draw_world(SPLITS[split] + index, config)
        rng = rng_of("questions", split, index)
        for kind in KINDS:
            for form in ("open", "choice"):
                if (question := ask(world, kind, rng)) is None:
                    continue
                question = FORMS[form](question, rng)
                yield {
                    "uid": f"{split}_{index}_{kind}_{form}",
                    "video": f"videos/{split}/{index:05d}.mp4",
                    "kind": kind,
                    "form": form,
                    "question": question.text,
                    "answer": question.answer,
                    "answers": list(question.answers),
                }


CHUNK = 32
"""Videos that a worker makes at a time."""


def write_videos(folder: Path, split: str, count: int, config: WorldConfig, progress, workers: int) -> None:
    """The mp4 files of a split; those that are there already are kept."""
    (folder / "videos" / split).mkdir(parents=True, exist_ok=True)
    jobs = [(folder / f"videos/{split}/{i:05d}.mp4", SPLITS[split] + i, config) for i in range(count)]
    if workers == 1 or count <= CHUNK:  # less work than starting a process
        for job in jobs:
            _write_one(job)
            progress()
        return
    # Not by fork: a lock that another thread of this process holds would stay closed in the children.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(_write_one, jobs, chunksize=CHUNK):
            progress()


def _write_one(job: tuple[Path, int, WorldConfig]) -> None:
    path, seed, config = job
    if not path.exists():
        write_video(path, draw_video(draw_world(seed, config), config), config.fps)


def write_rows(path: Path, rows) -> None:
    """JSONL, whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    os.replace(partial, path)


def write_corpus(
    folder: Path, world: WorldConfig, corpus: CorpusConfig, progress=lambda: None, workers: int = 1
) -> None:
    """Everything the three stages and the evaluation read, under one folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_videos(folder, "train", corpus.videos, world, progress, workers)
    write_videos(folder, "held_out", corpus.held_out, world, progress, workers)
    for index in range(corpus.images):
        write_image_files(folder, index, world)
    worlds = [draw_world(SPLITS["train"] + i, world) for i in range(corpus.videos)]
    write_rows(folder / "captions.jsonl", (caption_row("train", i, w) for i, w in enumerate(worlds)))
    write_rows(
        folder / "questions.jsonl", (video_row("train", i, w, corpus.questions) for i, w in enumerate(worlds))
    )
    write_rows(folder / "images.jsonl", (image_row(i, world) for i in range(corpus.images)))
    write_rows(folder / "texts.jsonl", (text_row(i, world, corpus) for i in range(corpus.texts)))
    write_rows(folder / "held_out.jsonl", question_rows("held_out", corpus.held_out, world))


def corpus_text(world: WorldConfig, corpus: CorpusConfig, count: int = 600) -> list[str]:
    """Text for learning a tokenizer: what questions, answers and descriptions are made of."""
    lines = []
    for index in range(count):
        row = text_row(index, world, corpus)
        lines.append("\n".join(turn["value"] for turn in row["conversations"]))
        lines.append(
            "\n".join([caption(draw_world(index, world)), ASK_WHEN, ASK_WHAT, ASK_SEEN, *BACKGROUNDS])
        )
    return lines
