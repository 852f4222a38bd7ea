"""Every benchmark: its published files in small, what is read from them, scores worked out by hand."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from miniatures import FIVE, FOUR, MINIATURES

from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval import eval_mlvu, eval_mvbench
from quicksviewer.eval.answering import score_record, unanswered
from quicksviewer.eval.frame_folder import FrameFolder
from quicksviewer.eval.summary import summarise
from quicksviewer.eval.task import spread, write_prompts
from quicksviewer.eval.tasks import TASKS, task_named
from quicksviewer.utils.data_util import MediaError, MediaLimits, read_video


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """Task -> (its row, its items, its folder)."""
    found = {}
    for name, make in MINIATURES.items():
        root = tmp_path_factory.mktemp(name)
        make(root, tiny)
        task = task_named(name)
        found[name] = SimpleNamespace(task=task, items=list(task.samples(root, None)), root=root)
    return found


def result_of(task, items, answers: dict) -> dict:
    """The summary for answers, uid -> text or texts; what is not named is not answered."""
    records = []
    for item in items:
        record = unanswered(item, blind=False)
        given = answers.get(item.uid, "")
        record["answers"] = [given] if isinstance(given, str) else given
        score_record(task, item, record)
        records.append(record)
    return summarise(records, task.metrics)


def rows(summary: dict) -> dict:
    return {kind: (row["items"], row[summary["metric"]]) for kind, row in summary["by_kind"].items()}


def test_every_task_has_a_miniature():
    assert set(MINIATURES) == set(TASKS)


# --- what is read

READ = {  # task -> uid -> (kind, expected, number of options, name of the video, start, end)
    "videomme": {
        "001-1": ("short", "C", 4, "fFjv93ACGo8.mp4", None, None),
        "001-2": ("short", "A", 4, "fFjv93ACGo8.mp4", None, None),
        "601-1": ("long", "B", 4, "_x-Y9z.mp4", None, None),
    },
    "mlvu": {
        **{f"{kind}-0": (kind, "A", 4, f"m_{n}.mp4", None, None) for n, kind in enumerate(eval_mlvu.TASKS)},
        "plotQA-1": ("plotQA", "A", 4, "m_0.mp4", None, None),
    },
    "mvbench": {
        f"{task}-0": (
            task,
            "ABCD"[n % 4],
            4,
            f"v{n}" if source.fps else f"v{n}.mp4",
            *((1.0, 2.5) if source.has_clips else (None, None)),
        )
        for n, (task, source) in enumerate(eval_mvbench.TASKS.items())
    },
    "nextqa": {
        "4010069381-5": ("CW", "E", 5, "4010069381.mp4", None, None),
        "2435100235-5": ("TN", "A", 5, "2435100235.mp4", None, None),
    },
    "nextqa_open": {
        "4010069381-5": ("CW", "to see", 0, "4010069381.mp4", None, None),
        "2435100235-5": ("DL", "red", 0, "2435100235.mp4", None, None),
    },
    "activitynetqa": {
        "v_1_0": ("yes_no", "yes", 0, "v_1QIUV7WYKXg.mp4", None, None),
        "v_1_1": ("colour", "red", 0, "v_1QIUV7WYKXg.mp4", None, None),
        "v_2_0": ("number", "no", 0, "_zz.mp4", None, None),
    },
    "longvideobench": {
        "a_0": ("15", "B", 4, "a.mp4", None, None),
        "b_0": ("600", "D", 4, "b.mp4", None, None),
    },
}
for _part in ("generic", "temporal", "consistency"):
    READ[f"videochatgpt_{_part}"] = {
        f"{_part}-{n}": (_part, f"It is {name}.", 0, f"{name}.mp4", None, None)
        for n, name in enumerate(("v_a", "v_b"))
    }
for _name in ("videomme", "longvideobench"):
    READ[f"{_name}_subtitles"] = READ[_name]


@pytest.mark.parametrize("name", sorted(READ))
def test_published_files_become_items(made, name):
    found = {
        item.uid: (item.kind, item.answer, len(item.options), item.video.split("/")[-1], item.start, item.end)
        for item in made[name].items
    }
    assert found == READ[name]
    for item in made[name].items:
        assert item.chance == (1 / len(item.options) if item.options else None)
        assert item.where.rsplit(":", 1)[1].isdigit()


@pytest.mark.parametrize("name", sorted(READ))
def test_every_clip_is_there_and_can_be_read(made, name):
    for item in made[name].items:
        frames, plan = read_video(item.video, 1.0, 8, item.start, item.end)
        assert len(frames) == len(plan.times) >= 1
        if item.start is not None:  # E4: only the clip is looked at
            assert all(item.start <= t < item.end for t in plan.times) and plan.end == item.end


def test_groups_break_a_result_down(made):
    groups = {item.uid: item.groups for item in made["videomme"].items}
    shared = {"sub_category": "Technology", "task_type": "Object Recognition"}
    assert groups["001-1"] == {"domain": "Knowledge", **shared} and groups["601-1"]["domain"] == "Life Record"
    assert [item.groups for item in made["nextqa"].items] == [
        {"category": "causal"},
        {"category": "temporal"},
    ]
    kinds = {"question_category": "S2E", "level": "L1-Perception", "topic_category": "NP-News-Programs"}
    assert made["longvideobench"].items[0].groups == kinds


def test_other_right_answers_are_kept(made):
    assert [item.references for item in made["nextqa_open"].items] == [("to look",), ()]


# --- how it is asked


def test_a_choice_is_asked_with_its_letters(made):
    item = made["videomme"].items[0]
    expected = (
        "What is seen, 001-1?\nA. a red circle\nB. a blue square\nC. a green star\nD. nothing\n"
        "Answer with the letter of the right option and nothing else."
    )
    assert write_prompts(made["videomme"].task.prompt, item, [0.5]) == [expected]


def test_questions_get_the_mark_that_files_leave_out(made):
    assert made["nextqa"].items[0].questions == ("why did it move?",)
    assert made["activitynetqa"].items[1].questions == ("what colour is it?",)


def test_consistency_asks_two_questions(made):
    item = made["videochatgpt_consistency"].items[0]
    assert write_prompts("{question}", item, []) == ["Q1 of v_a?", "Q2 of v_a?"]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([0.5], "Subtitles:\nHello there,\n\n"),
        ([0.5, 1.0, 1.1], "Subtitles:\nHello there,\nfriend.\n\n"),
        ([0.6], "Subtitles:\nfriend.\n\n"),
        ([1.2, 9.0], ""),
    ],
)
def test_subtitles_are_those_of_the_frames(made, times, said):
    first, _, last = made["videomme_subtitles"].items
    assert write_prompts("{subtitles}{question}", first, times) == [(said + first.questions[0]).strip()]
    assert write_prompts("{subtitles}|", last, times) == ["|"]  # that video has none
    assert write_prompts("{subtitles}|", made["videomme"].items[0], times) == ["|"]


def test_subtitles_of_a_cut_out_clip_are_moved_to_its_start(made):
    first, second = made["longvideobench_subtitles"].items
    assert [(line.start, line.end) for line in first.subtitles] == [(0.0, 1.0), (440.0, 449.0)]
    ((start, end),) = [(line.start, line.end) for line in second.subtitles]
    assert (round(start, 6), end) == (2.2, 4.0)
    assert write_prompts("{subtitles}", second, [3.9]) == ["Subtitles:\nLate words"]
    assert write_prompts("{subtitles}|", second, [2.0]) == ["|"]


def test_braces_in_questions_are_text(made):
    item = made["videomme"].items[0]
    item = type(item)(**{**vars(item), "questions": ("{options} {} {x}",)})
    assert write_prompts("{question}{unknown}", item, []) == ["{options} {} {x}{unknown}"]


# --- scores by hand


def test_videomme_by_hand(made):
    """Right answers are C, A, B."""
    task, items = made["videomme"].task, made["videomme"].items
    found = result_of(task, items, {"001-1": "C", "001-2": "The answer is (A).", "601-1": "A man"})
    assert rows(found) == {"short": (2, 1.0), "long": (1, 0.0), "overall": (3, 2 / 3)}
    assert found["macro"] == 0.5  # (1 + 0) / 2
    overall = found["by_kind"]["overall"]
    assert overall["others"]["strict"]["mean"] == 1 / 3 and overall["unanswered"] == 1
    assert found["by"]["domain"]["Knowledge"]["accuracy"] == 1.0
    assert found["by"]["domain"]["Life Record"]["accuracy"] == 0.0
    assert overall["chance"] == 0.25


def test_mvbench_by_hand(made):
    """The right answers run A, B, C, D, A ...; A to all is right in tasks 0, 4, 8, 12, 16."""
    task, items = made["mvbench"].task, made["mvbench"].items
    found = result_of(task, items, {item.uid: "A" for item in items})
    assert found["by_kind"]["overall"]["accuracy"] == found["macro"] == 5 / 20
    right = {kind for kind, row in found["by_kind"].items() if row["accuracy"] == 1.0}
    assert right == {list(eval_mvbench.TASKS)[n] for n in (0, 4, 8, 12, 16)}


def test_mlvu_counts_tasks_alike(made):
    """Eight questions in seven tasks; all right but one of the two of plotQA and the one of ego."""
    task, items = made["mlvu"].task, made["mlvu"].items
    answers = {item.uid: "(A)" for item in items} | {"plotQA-1": "B", "ego-0": "perhaps"}
    found = result_of(task, items, answers)
    assert found["by_kind"]["overall"]["accuracy"] == 6 / 8 and found["by_kind"]["plotQA"]["accuracy"] == 0.5
    assert math.isclose(found["macro"], (0.5 + 5 * 1 + 0) / 7)


def test_nextqa_by_hand(made):
    task, items = made["nextqa"].task, made["nextqa"].items
    found = result_of(task, items, {"4010069381-5": "E. something else", "2435100235-5": "e"})
    assert rows(found) == {"CW": (1, 1.0), "TN": (1, 0.0), "overall": (2, 0.5)}
    assert found["by"]["category"]["causal"]["accuracy"] == 1.0
    assert found["by_kind"]["overall"]["others"]["strict"]["mean"] == 0.0


def test_longvideobench_by_hand(made):
    task, items = made["longvideobench"].task, made["longvideobench"].items
    found = result_of(task, items, {"a_0": "B", "b_0": FIVE[3]})
    assert rows(found) == {"15": (1, 1.0), "600": (1, 1.0), "overall": (2, 1.0)}
    assert found["by"]["question_category"]["T3O"]["others"]["strict"]["mean"] == 0.0


@pytest.mark.parametrize("name", ["mvbench", "mlvu"])
def test_what_cannot_be_read_stays_in_the_denominator(made, name):
    """E2: the published scripts left it out: two of two are right there, two of all here."""
    task, items = made[name].task, made[name].items
    found = result_of(task, items, {item.uid: item.answer for item in items[:2]})
    overall = found["by_kind"]["overall"]
    assert overall["accuracy"] == 2 / len(items) and overall["items"] == len(items)
    assert overall["unanswered"] == len(items) - 2


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"world"}))
def test_nothing_answered_is_nothing_right(made, name):
    found = result_of(made[name].task, made[name].items, {})
    overall = found["by_kind"]["overall"]
    assert overall[found["metric"]] == 0.0 and overall["unanswered"] == overall["items"] > 0
    assert all(span["mean"] == 0.0 for span in overall.get("others", {}).values())


@pytest.mark.parametrize(
    ("answer", "score"), [("red", 1), (" Red\n", 1), ("RED", 1), ("red circle", 0), ("red.", 0)]
)
def test_an_answer_of_the_world_counts_when_it_is_the_expected_one(made, answer, score):
    task, item = made["world"].task, made["world"].items[0]
    item = type(item)(**{**vars(item), "answer": "red"})
    assert task.score(item, [answer]).values == {"accuracy": score}


def test_items_of_the_world_are_the_rows_of_its_file(made):
    lines = (made["world"].root / "held_out.jsonl").read_text().splitlines()
    for number, (row, item) in enumerate(
        zip(map(json.loads, lines), made["world"].items, strict=True), start=1
    ):
        assert (item.uid, item.questions, item.answer) == (row["uid"], (row["question"],), row["answer"])
        assert item.chance * len(row["answers"]) == 1 and item.where.endswith(f"held_out.jsonl:{number}")
        assert item.video == str(made["world"].root / row["video"])


# --- frames that are pictures


def test_pictures_at_three_a_second_are_looked_up_by_their_time(made):
    """E4: the published script indexed these folders as if they had one picture a second."""
    (item,) = [item for item in made["mvbench"].items if item.kind == "episodic_reasoning"]
    assert isinstance(item.video, FrameFolder) and (item.start, item.end) == (1.0, 2.5)
    frames, plan = read_video(item.video, 2.0, 8, item.start, item.end)
    assert plan.times == (1.25, 1.75, 2.25)
    # Picture n is on screen from n / 3 on, and n * 20 red.
    expected = [int(t * 3) * 20 for t in plan.times]
    assert np.allclose(frames[:, 16, 16, 0], expected, atol=4) and expected == [60, 100, 120]
    assert (plan.decoder, plan.end) == ("pillow", 2.5)


def test_a_folder_without_pictures_is_a_bad_medium(tmp_path):
    with pytest.raises(MediaError, match="holds no .jpg"):
        FrameFolder(str(tmp_path), 3.0).open_frames(MediaLimits())
    with pytest.raises(MediaError, match="no such file"):
        FrameFolder(str(tmp_path / "gone"), 3.0).open_frames(MediaLimits())


# --- files that are not what they should be

DAMAGE = [
    ("videomme", "videomme/test-00000-of-00001.parquet", b"PAR1 nonsense", ValueError, "no parquet file"),
    ("mvbench", "json/scene_transition.json", None, ValueError, "none of json/scene_transition.json"),
    ("mvbench", "json/scene_transition.json", b"{", ValueError, "scene_transition.json is not JSON"),
    ("mvbench", "json/scene_transition.json", b"{}", ValueError, "expected a list of objects, got dict"),
    ("mvbench", "json/scene_transition.json", b"[]", ValueError, "holds no questions"),
    ("mvbench", "json/scene_transition.json", b"[1]", SampleError, "json:1: expected an object"),
    ("mvbench", "json/action_sequence.json", b'[{"video": "v"}]', SampleError, ":1: question, candid"),
    (
        "mvbench",
        "json/action_sequence.json",
        json.dumps([{"video": "v", "question": "q", "candidates": FOUR, "answer": FOUR[0]}]).encode(),
        SampleError,
        "action_sequence.json:1: start, end missing",
    ),
    (
        "mlvu",
        "json/4_count.json",
        json.dumps([{"video": "v", "question": "q", "candidates": FOUR, "answer": "five"}]).encode(),
        SampleError,
        "4_count.json:1: the answer 'five' stands 0 times",
    ),
    ("nextqa", "test.csv", b"video,question,answer,qid,type,a0,a1,a2,a3,a4\n1,q,5,0,CW,a,b,c,d,e\n",
     SampleError, "test.csv:1: no option number '5' among 5"),
    ("activitynetqa", "test_a.json", b'[{"question_id": "v_1_0", "answer": "a", "type": 3}]', SampleError,
     "'v_1_1' has no answer"),
    ("activitynetqa", "test_a.json", b'[{"question_id": "v_1_0", "answer": "a", "type": 9}]', SampleError,
     "type must lie in 0..8"),
    ("longvideobench_subtitles", "subtitles/b_en.json", b'[{"text": "x"}]', ValueError, "row 1: no subtitle"),
    ("videomme_subtitles", "subtitle/fFjv93ACGo8.srt", b"words", ValueError, "no line of the form"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "kind", "message"), DAMAGE, ids=lambda v: str(v)[:24])
def test_a_damaged_file_is_named(tiny, tmp_path, name, file, content, kind, message):
    MINIATURES[name](tmp_path, tiny)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(kind, match=message):
        list(task_named(name).samples(tmp_path, None))


def test_parquet_columns_of_the_hub_are_read_too(tiny, tmp_path):
    """NExT-QA and LongVideoBench also exist as parquet files, with numbers for names and option columns."""
    from miniatures import write_parquet

    row = {
        "video": 4010069381,
        "frame_count": 3,
        "width": 1,
        "height": 1,
        "question": "q",
        "answer": 2,
        "qid": 0,
    }
    write_parquet(tmp_path / "MC/test-00000-of-00001.parquet", [row | {"type": "DL", **dict.fromkeys(
        [f"a{n}" for n in range(5)], "x"), "a2": "y"}])  # fmt: skip
    (item,) = task_named("nextqa").samples(tmp_path, None)
    assert (item.uid, item.answer, item.kind) == ("4010069381-0", "C", "DL")
    shared = {"id": "z", "video_path": "z.mp4", "question": "q", "correct_choice": 1, "duration_group": 3600}
    options = {"option0": "x", "option1": "y", "option2": "z", "option3": "N/A", "option4": "N/A"}
    write_parquet(tmp_path / "lvb/validation-00000-of-00001.parquet", [shared | options])
    (item,) = task_named("longvideobench").samples(tmp_path / "lvb", None)
    assert (item.answer, item.options, item.chance) == ("B", ("x", "y", "z"), 1 / 3)


def test_a_limit_takes_from_all_over():
    assert spread(list(range(10)), 4) == [1, 3, 6, 8] and spread([1, 2], 5) == spread([1, 2], None) == [1, 2]
    kinds = [n // 100 for n in range(2000)]
    assert sorted(spread(kinds, 20)) == list(range(20))
