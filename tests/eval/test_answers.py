"""Answers depend on no batch, padding or default of a checkpoint; numbers are worked out by hand."""

import hashlib
import math
import random
import subprocess
import weakref
from dataclasses import replace

import pytest
import torch

from quicksviewer.conversation import Turn
from quicksviewer.eval import identity
from quicksviewer.eval.answering import Answerer, Item, load_ahead, make_batches, noise_like
from quicksviewer.eval.eval_world import WORLD, samples
from quicksviewer.eval.identity import code_facts, weights_hash
from quicksviewer.eval.metrics import by_kind, interval, mean, wilson
from quicksviewer.eval.summary import design_effect, estimate, row

LIMIT = 6


@pytest.fixture(scope="module")
def items(tiny):
    return list(samples(tiny / "data"))


def answers_of(loaded, items, size=8, **settings) -> list[dict]:
    answerer = Answerer(loaded=loaded, task=WORLD, prompt=WORLD.prompt, **settings)
    return [record for records, _ in answerer.answer(make_batches(items, size)) for record in records]


# --- answers


@pytest.mark.parametrize("size", [1, 4, 100])
def test_answers_are_those_of_asking_one_by_one(loaded, items, size):
    chosen = [items[0], *items[-LIMIT:]]
    records = {record["uid"]: record for record in answers_of(loaded, chosen, size)}
    assert set(records) == {item.uid for item in chosen}
    processor, tokenizer = loaded.processor, loaded.tokenizer
    for item in chosen:
        turns = [Turn("user", f"<video>\n{item.questions[0]}")]
        video = processor.load_video(item.video)
        batch = processor.batch([processor.encode_turns(turns, [video], generation=True)])
        out = loaded.model.generate(**batch, max_new_tokens=WORLD.max_new_tokens, do_sample=False)
        new = out[0, batch["input_ids"].shape[1] :]
        assert records[item.uid]["answers"] == [tokenizer.decode(new, skip_special_tokens=True).strip()]


def test_each_clip_is_decoded_and_encoded_once(loaded, items):
    """E8: the published scripts encode a video anew for every question."""
    seen, paths = [], []
    encode, load = loaded.model.encode_media, loaded.processor.load_video
    loaded.model.encode_media = lambda media, *more: (
        media and seen.append(media.frames) or encode(media, *more)
    )
    loaded.processor.load_video = lambda path, *clip: paths.append(path) or load(path, *clip)
    try:
        answers_of(loaded, items, size=5)
    finally:
        del loaded.model.encode_media, loaded.processor.load_video
    assert paths == sorted({item.video for item in items}) and len(seen) == len(paths) < len(items)


def test_parts_of_one_video_are_clips_of_their_own(loaded, items):
    parts = [replace(items[0], uid=str(n), start=n * 2.0, end=n * 2.0 + 1.5) for n in range(3)]
    records = answers_of(loaded, [*parts, replace(items[0], uid="all")])
    plans = {r["uid"]: (r["plan"]["start"], r["plan"]["end"], r["plan"]["times"]) for r in records}
    assert [plans[str(n)][:2] for n in range(3)] == [(0.0, 1.5), (2.0, 3.5), (4.0, 5.5)]
    assert len({r["clip"] for r in records}) == 4 and all(len(plans[str(n)][2]) <= 2 for n in range(3))


def test_clips_are_decoded_ahead_in_order_and_no_further():
    begun = []

    def load(item):
        begun.append(item)
        return item

    clips = load_ahead(load, list(range(8)), 2)
    for place in range(8):
        assert next(clips) == place
    assert sorted(begun) == list(range(8)) and next(clips, None) is None
    begun.clear()
    clips = load_ahead(load, list(range(8)), 2)
    assert next(clips) == 0
    clips.close()
    assert max(begun) <= 2, "no more than two beside the one that is used"


@pytest.mark.parametrize("ahead", [0, 2])
def test_only_the_clips_ahead_are_in_memory(loaded, items, ahead):
    """Pixels are the largest thing: those of a clip that has been encoded are gone."""
    parts = [replace(items[0], uid=str(n), start=n * 1.0, end=n + 2.5) for n in range(8)]
    pixels, alive = [], []
    encode, load = loaded.model.encode_media, loaded.processor.load_video

    def loading(*clip):
        medium = load(*clip)
        pixels.append(weakref.ref(medium.pixels))
        return medium

    def encoding(media, *more):
        alive.append(sum(ref() is not None for ref in pixels))
        return encode(media, *more)

    loaded.processor.load_video, loaded.model.encode_media = loading, encoding
    try:
        answerer = Answerer(loaded=loaded, task=WORLD, prompt="{question}", ahead=ahead)
        for _ in answerer.answer(make_batches(parts, 1)):
            alive.append(sum(ref() is not None for ref in pixels))
    finally:
        del loaded.model.encode_media, loaded.processor.load_video
    assert len(pixels) == 8 and max(alive) <= ahead + 1 and alive[-1] == 0


def test_what_follows_the_end_of_an_answer_is_no_answer(loaded, items):
    """E1: rows that end early are filled up; the filling may be the id of a word, as 0 is "!" in Qwen."""
    texts = [record["answers"][0] for record in answers_of(loaded, items[:LIMIT], size=LIMIT)]
    word = loaded.tokenizer("red", add_special_tokens=False)["input_ids"][0]
    pad, loaded.tokenizer.pad_token_id = loaded.tokenizer.pad_token_id, word
    try:
        assert loaded.processor.pad_id == word
        again = [record["answers"][0] for record in answers_of(loaded, items[:LIMIT], size=LIMIT)]
    finally:
        loaded.tokenizer.pad_token_id = pad
    assert again == texts and "!" not in str(texts)


def test_blind_is_the_same_question_with_noise_for_frames(loaded, items):
    pixels = loaded.processor.load_video(items[0].video).pixels
    noise = noise_like(pixels, items[0].clip)
    assert noise.shape == pixels.shape and noise.dtype == torch.uint8
    assert abs(noise.float().mean() - 127.5) < 2 and noise.float().std() == pytest.approx(73.9, abs=1)
    assert torch.equal(noise, noise_like(pixels, f"/elsewhere/{items[0].clip.split('/')[-1]}"))
    assert not torch.equal(noise, noise_like(pixels, items[-1].clip))
    plain, blind = (answers_of(loaded, items[:LIMIT], blind=b) for b in (False, True))
    assert [r["answers"] for r in plain] == [r["answers"] for r in blind]
    turns = [Turn("user", f"<video>\n{items[0].questions[0]}")]
    video = replace(loaded.processor.load_video(items[0].video), pixels=noise)
    batch = loaded.processor.batch([loaded.processor.encode_turns(turns, [video], generation=True)])
    out = loaded.model.generate(**batch, max_new_tokens=WORLD.max_new_tokens, do_sample=False)
    new = loaded.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert next(r for r in blind if r["uid"] == items[0].uid)["blind_answers"] == [new]


def test_no_default_of_the_checkpoint_creeps_into_greedy_answers(loaded, items):
    """E6: sampling settings of a downloaded model made the published runs differ from each other."""
    plain = answers_of(loaded, items[:LIMIT])
    settings = loaded.model.generation_config
    before = settings.to_dict()
    try:  # as the generation_config.json of a downloaded chat model has it
        settings.update(repetition_penalty=5.0, temperature=0.7, top_k=3, do_sample=True, num_beams=2)
        assert answers_of(loaded, items[:LIMIT]) == plain
    finally:
        settings.update(**before)


# --- numbers


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (0, 10), (3, 10), (50, 100), (100, 100)])
def test_the_interval_is_wilsons(right, total):
    """Its ends are the p for which the observed share lies 1.96 standard errors away."""
    low, high = interval([1.0] * right + [0.0] * (total - right))
    share = right / total
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / total))
    assert -1e-8 < low - 1e-9 < share < high + 1e-9 < 1 + 1e-8


def record(score, video, **more) -> dict:
    known = {"scores": {"accuracy": score}, "video": video, "read": "x", "error": None, "chance": 0.5}
    return {**known, "kind": "k", "groups": {}, **more}


def test_questions_about_one_video_are_worth_less_than_as_many_videos():
    """Two videos with three questions each, one all right, one all wrong: deviations of 1/2. Their squares
    add up to 6/4, those of the sums of the videos to 2 * (3/2)^2 = 9/2: three times as much, and twice that
    for the mean that two videos are measured from."""
    together = [record(1.0, "a")] * 3 + [record(0.0, "b")] * 3
    assert design_effect([1.0] * 3 + [0.0] * 3, list("aaabbb")) == pytest.approx(6.0)
    assert estimate(together, "accuracy", 1.0) == (0.5, *wilson(0.5, 2.0))
    apart = [record(r["scores"]["accuracy"], str(n)) for n, r in enumerate(together)]
    assert estimate(apart, "accuracy", 1.0) == (0.5, *interval([1.0] * 3 + [0.0] * 3))
    assert design_effect([1.0, 1.0], ["a", "a"]) == 1.0 == design_effect([1.0, 0.0] * 2, list("aabb"))
    assert estimate([record(4.0, "a"), record(1.0, "b")], "accuracy", 5.0)[0] == 2.5


def in_videos(values: list[float], each: int) -> list[dict]:
    return [record(value, str(place // each)) for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("records", "share", "items"),
    [
        (in_videos([1.0, 0.0] * 20, each=40), 0.5, 1.0),
        (in_videos([1.0, 1.0, 0.0] * 3, each=3), 2 / 3, 3.0),
        ([*in_videos([1.0] * 3, each=3), record(0.0, "other")], 0.75, 16 / 10),
        (in_videos([1.0, 1.0, 0.0, 0.0] * 5, each=2), 0.5, 20 / (2 * 10 / 9)),
        (in_videos([1.0] * 60, each=3), 1.0, 20.0),
        (in_videos([1.0, 0.0] * 10, each=1), 0.5, 20.0),
        (in_videos([1.0, 0.0] * 10, each=2), 0.5, 20.0),
    ],
    ids=[
        "one video",
        "few videos",
        "of 3 and 1",
        "ten in pairs",
        "all right",
        "one each",
        "nothing in common",
    ],
)
def test_what_questions_about_the_same_videos_are_worth(records, share, items):
    assert estimate(records, "accuracy", 1.0) == pytest.approx((share, *wilson(share, items)))


@pytest.mark.parametrize("videos", [1, 3, 6, 9, 12, 30])
def test_the_interval_holds_the_truth(videos):
    """Eight questions about a video are all right or all wrong, either as often: drawn 1,000 times, the
    interval holds 1/2 in more than nine of ten."""
    draw, held = random.Random(0), 0
    for _ in range(1000):
        values = [float(draw.random() < 0.5) for _ in range(videos)]
        _, low, high = estimate(in_videos([v for v in values for _ in range(8)], each=8), "accuracy", 1.0)
        held += low <= 0.5 <= high
    assert held > 900


def test_a_row_counts_what_was_lost():
    some = [
        record(1.0, "a"),
        record(0.0, "b", read=None),
        record(0.0, "c", read=None, error="gone", chance=0.25),
    ]
    found = row(some, {"accuracy": 1.0})
    assert {k: found[k] for k in ("items", "unanswered", "failed")} == {
        "items": 3,
        "unanswered": 2,
        "failed": 1,
    }
    assert found["accuracy"] == 1 / 3 and found["chance"] == pytest.approx(1.25 / 3)
    assert "chance" not in row([record(1.0, "a", chance=None)], {"accuracy": 1.0})


def test_kinds_sum_to_the_whole():
    records = [
        {"kind": kind, "score": float(place % 3 == 0), "chance": chance, "blind_score": float(place % 4 == 0)}
        for place, (kind, chance) in enumerate([("a", 0.5)] * 5 + [("b", 0.25)] * 7)
    ]
    table = by_kind(records)
    assert set(table) == {"a", "b", "overall"}
    for key in ("accuracy", "chance", "blind"):
        assert table["overall"][key] == pytest.approx((5 * table["a"][key] + 7 * table["b"][key]) / 12)
    for kind, rows in (("a", records[:5]), ("b", records[5:]), ("overall", records)):
        scores = [row["score"] for row in rows]
        assert (table[kind]["items"], table[kind]["accuracy"]) == (len(rows), sum(scores) / len(rows))
        assert (table[kind]["low"], table[kind]["high"]) == interval(scores)


def test_nothing_has_no_mean():
    assert math.isnan(mean([])) and all(map(math.isnan, interval([])))
    assert estimate([], "accuracy", 1.0) == (None, None, None)


def test_the_hash_is_that_of_all_files_on_which_answers_depend(tmp_path):
    texts = {"b.safetensors": "2", "a.safetensors": "1", "config.json": "3", "tokenizer.json": "4"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    lines = [f"{n} {hashlib.sha256(t.encode()).hexdigest()}\n" for n, t in sorted(texts.items())]
    before = weights_hash(str(tmp_path))
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    for beside in ("eval_world.json", "trainer_state.json", "README.md"):
        (tmp_path / beside).write_text("x")
    assert weights_hash(tmp_path) == before
    for name in (*texts, "processor_config.json", "tokenizer_config.json", "chat_template.jinja"):
        was = texts.get(name)
        (tmp_path / name).write_text("other")
        assert weights_hash(tmp_path) != before, name
        (tmp_path / name).write_text(was) if was else (tmp_path / name).unlink()
    (tmp_path / "a.safetensors").rename(tmp_path / "c.safetensors")
    assert weights_hash(tmp_path) != before


def test_a_folder_without_weights_that_are_read_has_no_hash(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"has no weight files \(\*.safetensors\)"):
        weights_hash(tmp_path)


def test_an_image_without_a_checkout_is_told_its_commit(tmp_path, monkeypatch):
    version = identity.quicksviewer.__version__
    for told, wanted in (("", version), ("1234abc", f"{version}+1234abc")):
        monkeypatch.setenv("QUICKSVIEWER_COMMIT", told)
        code_facts.cache_clear()
        assert code_facts(tmp_path / "package") == wanted
    code_facts.cache_clear()


def test_the_code_is_named_by_its_commit_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.delenv("QUICKSVIEWER_COMMIT", raising=False)
    package = tmp_path / "package"
    package.mkdir()
    version = identity.quicksviewer.__version__
    assert code_facts(package) == version
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    monkeypatch.setenv("QUICKSVIEWER_COMMIT", "of an image")  # a checkout knows better
    (package / "x.py").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True
    ).stdout.strip()
    code_facts.cache_clear()
    assert code_facts(package) == f"{version}+{head}"
    (tmp_path / "notes.txt").write_text("beside the package")
    code_facts.cache_clear()
    assert code_facts(package) == f"{version}+{head}"
    (package / "x.py").write_text("2")
    code_facts.cache_clear()
    assert code_facts(package) == f"{version}+{head}+changes"


def test_an_item_says_what_is_looked_at():
    item = Item(uid="a", video="v.mp4", questions=("q",), answer="x", kind="k", where="f:1")
    assert item.clip == "v.mp4" and replace(item, start=1.0).clip == "v.mp4 [1.0 s, end)"
    assert replace(item, end=2.5).clip == "v.mp4 [0 s, 2.5 s)"


def test_a_question_that_cannot_be_asked_is_a_lost_item(loaded, items):
    bad = replace(items[1], questions=("<visual> and <video>?",))
    long = replace(items[2], questions=("word " * 5000,))
    records = {r["uid"]: r for r in answers_of(loaded, [items[0], bad, long, items[3]])}
    assert [records[item.uid]["error"] is None for item in items[:4]] == [True, False, False, True]
    assert (
        records[bad.uid]["error"].startswith(f"{bad.where}: ") and records[bad.uid]["scores"]["accuracy"] == 0
    )
    assert "the model has room for" in records[long.uid]["error"]
