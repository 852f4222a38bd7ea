"""The corpus: same settings, same bytes; every row is readable; what was held out stays out."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_world import CORPUS, WORLD

from quicksviewer.data.preprocess import parse_sample
from quicksviewer.synthetic import corpus, pretrain
from quicksviewer.synthetic.corpus import (
    ASK_WHEN,
    SPLITS,
    CorpusConfig,
    image_row,
    question_rows,
    rng_of,
    some_questions,
    text_row,
    video_row,
    write_corpus,
    write_rows,
)
from quicksviewer.synthetic.questions import timeline
from quicksviewer.synthetic.video import draw_video
from quicksviewer.synthetic.world import BACKGROUNDS, COLOURS, SHAPES, WORDS, WorldConfig, draw_world
from quicksviewer.utils.data_util import load_image, read_video

FILES = ("captions", "questions", "images", "texts")
SMALL = CorpusConfig(videos=2, held_out=1, images=3, texts=2, questions=2)


def rows_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"data/{name}.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- the same everywhere ---


def test_same_settings_same_bytes(tmp_path):
    write_corpus(tmp_path / "one", WORLD, SMALL)
    write_corpus(tmp_path / "two", WORLD, SMALL, workers=2)
    files = contents(tmp_path / "one")
    assert files == contents(tmp_path / "two")
    assert sum(name.endswith(".mp4") for name in files) == 3
    assert not [name for name in files if "partial" in name]


def test_a_row_does_not_depend_on_how_many_there_are(tiny):
    larger = CorpusConfig(**{**CORPUS.__dict__, "videos": 50, "texts": 50})
    world = draw_world(SPLITS["train"] + 2, WORLD)
    assert rows_of(tiny, "questions")[2] == video_row("train", 2, world, larger.questions)
    assert rows_of(tiny, "texts")[3] == text_row(3, WORLD, larger)
    held_out = list(question_rows("held_out", 5, WORLD))
    assert rows_of(tiny, "held_out") == held_out[: len(rows_of(tiny, "held_out"))]


def test_videos_that_are_there_are_kept(tmp_path):
    write_corpus(tmp_path, WORLD, SMALL)
    kept = tmp_path / "videos/train/00000.mp4"
    kept.write_bytes(b"kept")
    (tmp_path / "videos/train/00001.mp4").unlink()
    done = []
    write_corpus(tmp_path, WORLD, SMALL, lambda: done.append(1))
    assert kept.read_bytes() == b"kept" and (tmp_path / "videos/train/00001.mp4").is_file()
    assert len(done) == SMALL.videos + SMALL.held_out


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"old": 1}])
    with pytest.raises(ZeroDivisionError):
        write_rows(path, ({"new": 1 / (1 - i)} for i in range(2)))
    assert path.read_text() == '{"old": 1}\n'


@pytest.mark.parametrize("count", ["videos", "held_out", "images", "texts", "questions"])
def test_an_empty_part_is_refused(count):
    with pytest.raises(ValueError, match="at least 1"):
        CorpusConfig(**{count: 0})


# --- what the rows say ---


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_in_the_schema_and_its_media_are_there(tiny, name):
    rows = rows_of(tiny, name)
    assert len(rows) == {"images": CORPUS.images, "texts": CORPUS.texts}.get(name, CORPUS.videos)
    assert len({row["uid"] for row in rows}) == len(rows)
    for number, row in enumerate(rows, start=1):
        sample = parse_sample(row, f"{name}.jsonl:{number}")
        for medium in sample.media:
            path = tiny / "data" / medium.path
            assert read_video(path, 1, 4) if medium.kind == "video" else load_image(path)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_file_shows_the_world_of_its_rows(tiny, split):
    for index in range(CORPUS.held_out):
        frames, plan = read_video(tiny / f"data/videos/{split}/{index:05d}.mp4", 1, 99)
        world = draw_world(SPLITS[split] + index, WORLD)
        drawn = draw_video(world, WORLD)[[int(time * WORLD.fps) for time in plan.times]]
        assert len(frames) == world.seconds and np.abs(frames.astype(int) - drawn).mean() < 6


def test_captions_are_the_timelines_and_nothing_else(tiny):
    for index, row in enumerate(rows_of(tiny, "captions")):
        asked, told = (turn["value"] for turn in row["conversations"])
        assert asked == f"<video>\n{ASK_WHEN}"
        assert told == timeline(draw_world(SPLITS["train"] + index, WORLD))


def test_a_conversation_asks_no_question_twice_and_the_timeline_once(tiny):
    for name in ("questions", "texts"):
        for row in rows_of(tiny, name):
            asked = [turn["value"].split("\n")[-1] for turn in row["conversations"][::2]]
            assert len(set(asked)) == len(asked) and asked.count(ASK_WHEN) == 1
            assert 1 < len(asked) <= CORPUS.questions + 1


def test_a_text_row_holds_what_it_takes_to_answer_it(tiny):
    for row in rows_of(tiny, "texts"):
        stream = row["conversations"][0]["value"]
        turns = [turn["value"] for turn in row["conversations"]]
        told = next(b for a, b in zip(turns[::2], turns[1::2], strict=True) if a.endswith(ASK_WHEN))
        seconds = [int(line.split()[0]) for line in stream.split("\n")[:-1]]
        assert seconds == sorted(set(seconds)) and seconds[0] == 0
        assert all(line.split(" ", maxsplit=1)[1] in stream for line in told.split("\n"))


def test_up_to_so_many_different_questions():
    world = draw_world(1, WORLD)
    for count in (0, 1, 5, 100):
        found = some_questions(world, rng_of("any"), count)
        assert len({question.text for question in found}) == len(found) <= count
    assert len(some_questions(world, rng_of("any"), 5)) == 5


def test_pictures_show_what_their_rows_say(tiny):
    for index, row in enumerate(rows_of(tiny, "images")):
        sample = parse_sample(row, "images.jsonl")
        said = ", then ".join(turn.text for turn in sample.turns if turn.role == "assistant")
        told = [words.split() for words in said.split(", then ")]
        assert len(told) == len(sample.media) and (index % 3 == 0) == (len(told) == 1)
        for medium, (colour, shape, *word) in zip(sample.media, told, strict=True):
            pixels = np.asarray(load_image(tiny / "data" / medium.path))
            count = {name: int((pixels == rgb).all(-1).sum()) for name, rgb in COLOURS.items()}
            grounds = [name for name, rgb in BACKGROUNDS.items() if (pixels == rgb).all(-1).sum() > 500]
            assert max(count, key=count.get) == colour and count[colour] > 100 and len(grounds) == 1
            assert shape in SHAPES and set(word) <= set(WORDS) and len(word) <= 1


def test_every_third_image_row_is_of_another_kind():
    rows = [image_row(index, WORLD) for index in range(6)]
    kinds = [(row["data_type"], isinstance(row["image"], list)) for row in rows]
    assert kinds == [("conversations", False), ("conversations", True), ("interleave", True)] * 2


# --- what was held out ---


def test_held_out_rows_are_complete_and_their_answers_possible(tiny):
    rows = rows_of(tiny, "held_out")
    assert len({row["uid"] for row in rows}) == len(rows)
    assert {row["video"] for row in rows} == {f"videos/held_out/{i:05d}.mp4" for i in range(CORPUS.held_out)}
    for row in rows:
        assert set(row) == {"uid", "video", "kind", "form", "question", "answer", "answers"}
        assert row["answers"].count(row["answer"]) == 1
        assert row["form"] == "open" or len(row["answers"]) <= 4


def test_seeds_of_what_is_held_out_are_used_for_nothing_else(monkeypatch):
    seeds = []

    def watched(seed: int, config: WorldConfig):
        seeds.append(seed)
        return draw_world(seed, config)

    monkeypatch.setattr(corpus, "draw_world", watched)
    monkeypatch.setattr(pretrain, "draw_world", watched)

    def seeds_of(work) -> set[int]:
        seeds.clear()
        list(work())
        return set(seeds)

    default = CorpusConfig()
    held_out = set(range(SPLITS["held_out"], SPLITS["held_out"] + default.held_out))
    assert seeds_of(lambda: question_rows("held_out", 8, WORLD)) <= held_out
    texts = (0, default.texts - 1, 10**7, 10**7 + 10**6)  # the last: far more rows than a warm-up reads
    learned_from = [
        seeds_of(lambda: [image_row(i, WORLD) for i in (0, 1, 2, default.images - 1)]),
        seeds_of(lambda: [text_row(i, WORLD, default) for i in texts]),
        seeds_of(lambda: [pretrain.picture(i, WORLD) for i in range(2000)]),
        seeds_of(lambda: corpus.corpus_text(WORLD, default, 20)),
        set(range(SPLITS["train"], SPLITS["train"] + default.videos)),
    ]
    for used in learned_from:
        assert used and not used & held_out
