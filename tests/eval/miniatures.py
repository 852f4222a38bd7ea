"""Shared by tests: every benchmark in the form in which it is published, with two or three real clips of the
embedded world, and what comes of it."""

import csv
import json
import shutil
from pathlib import Path

from PIL import Image

from quicksviewer.eval.eval_mlvu import TASKS as MLVU_TASKS
from quicksviewer.eval.eval_mvbench import TASKS as MVBENCH_TASKS

FOUR = ["a red circle", "a blue square", "a green star", "nothing"]
FIVE = [*FOUR, "something else"]


def clips(tiny: Path) -> list[Path]:
    return sorted((tiny / "data/videos/train").glob("*.mp4"))


def put(source: Path, *place) -> None:
    """A copy of a clip."""
    target = Path(*place)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def write_json(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False))


def write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


SRT = """1
00:00:00,400 --> 00:00:00,600
Hello <i>there</i>,

2
00:00:00,600 --> 00:00:01,200
friend.

3
00:59:00,000 --> 00:59:01,000
Nobody sees this.
"""


def videomme(root: Path, tiny: Path, questions=None) -> None:
    """Two videos, three questions: the columns of the parquet file on the hub."""
    rows = []
    facts = [("short", "Knowledge", "001-1", "C"), ("short", "Knowledge", "001-2", "A")]
    for place, (duration, domain, uid, answer) in enumerate([*facts, ("long", "Life Record", "601-1", "B")]):
        name = "fFjv93ACGo8" if place < 2 else "_x-Y9z"
        options = [f"{letter}. {text}" for letter, text in zip("ABCD", FOUR, strict=True)]
        rows.append(
            {
                "video_id": uid[:3],
                "duration": duration,
                "domain": domain,
                "sub_category": "Technology",
                "url": f"https://www.youtube.com/watch?v={name}",
                "videoID": name,
                "question_id": uid,
                "task_type": "Object Recognition",
                "question": f"What is seen, {uid}?",
                "options": options,
                "answer": answer,
            }
            | (questions[place] if questions else {})
        )
        put(clips(tiny)[place // 2], root, "data", f"{name}.mp4")
    write_parquet(root / "videomme/test-00000-of-00001.parquet", rows)
    (root / "subtitle").mkdir()
    (root / "subtitle/fFjv93ACGo8.srt").write_text(SRT)


def mvbench(root: Path, tiny: Path) -> None:
    """One question of each of the twenty tasks, in its folder; a clip, or a folder of pictures."""
    for place, (task, source) in enumerate(MVBENCH_TASKS.items()):
        name = f"v{place}" if source.fps else f"v{place}.mp4"
        row = {
            "video": name,
            "question": f"What about {task}?",
            "candidates": FOUR,
            "answer": FOUR[place % 4],
        }
        if source.has_clips:
            row |= {"start": 1.0, "end": 2.5}
        write_json(root / "json" / f"{task}.json", [row])
        if source.fps:
            folder = root / "video" / source.folder / name
            folder.mkdir(parents=True)
            for frame in range(12):  # four seconds; the frame says its number in red
                Image.new("RGB", (32, 32), (frame * 20, 0, 0)).save(
                    folder / f"{frame + 1:05}.jpg", quality=95
                )
        else:
            put(clips(tiny)[place % 3], root / "video" / source.folder / name)


def mlvu(root: Path, tiny: Path) -> None:
    """One question of each of the seven tasks, two of the first."""
    for place, (kind, name) in enumerate(MLVU_TASKS.items()):
        row = {
            "video": f"m_{place}.mp4",
            "duration": 12.0,
            "question": f"What of {kind}?",
            "candidates": FOUR,
            "answer": FOUR[0],
            "question_type": kind,
        }
        write_json(root / "json" / f"{name}.json", [row, row | {"question": "And then?"}][: 1 + (place == 0)])
        put(clips(tiny)[place % 3], root / "video" / name / f"m_{place}.mp4")


def _nextqa(root: Path, tiny: Path) -> list[dict]:
    paths = {"4010069381": "1164/4010069381", "2435100235": "1002/2435100235"}
    write_json(root / "map_vid_vidorID.json", paths)
    for place, path in enumerate(paths.values()):
        put(clips(tiny)[place], root, "NExTVideo", f"{path}.mp4")
    size = {"frame_count": 369, "width": 640, "height": 480}
    return [{"video": name, **size, "question": "why did it move", "qid": 5} for name in paths]


def nextqa(root: Path, tiny: Path) -> None:
    """test.csv of the multiple-choice setting."""
    first, second = _nextqa(root, tiny)
    options = {f"a{n}": text for n, text in enumerate(FIVE)}
    write_csv(
        root / "test.csv",
        [
            first | {"answer": 4, "type": "CW", **options},
            second | {"answer": 0, "type": "TN", **options},
        ],
    )


def nextqa_open(root: Path, tiny: Path) -> None:
    """test.csv of the open setting, where some questions have a second answer."""
    first, second = _nextqa(root, tiny)
    write_csv(
        root / "test.csv",
        [
            first | {"answer": "to see", "type": "CW", "additional_ref_answer": "to look"},
            second | {"answer": "red", "type": "DL", "additional_ref_answer": ""},
        ],
    )


def activitynetqa(root: Path, tiny: Path) -> None:
    """test_q.json and test_a.json; one video with the prefix v_ and one without."""
    write_json(
        root / "test_q.json",
        [
            {
                "video_name": "1QIUV7WYKXg",
                "question": "is the athlete wearing trousers",
                "question_id": "v_1_0",
            },
            {"video_name": "1QIUV7WYKXg", "question": "what colour is it", "question_id": "v_1_1"},
            {"video_name": "_zz", "question": "how many are there", "question_id": "v_2_0"},
        ],
    )
    write_json(
        root / "test_a.json",
        [
            {"answer": "no", "question_id": "v_2_0", "type": 7},
            {"answer": "yes", "question_id": "v_1_0", "type": 3},
            {"answer": "red", "question_id": "v_1_1", "type": 4},
        ],
    )
    put(clips(tiny)[0], root, "videos", "v_1QIUV7WYKXg.mp4")
    put(clips(tiny)[1], root, "videos", "_zz.mp4")


def _video_chatgpt(part: str, *questions: str):
    def make(root: Path, tiny: Path) -> None:
        rows = [
            {**{q: f"{q} of {name}?" for q in questions}, "A": f"It is {name}.", "video_name": name}
            for name in ("v_a", "v_b")
        ]
        write_json(root / f"{part}_qa.json", rows)
        for place, row in enumerate(rows):
            put(clips(tiny)[place], root, "Test_Videos", f"{row['video_name']}.mp4")

    return make


def longvideobench(root: Path, tiny: Path) -> None:
    """lvb_val.json with both kinds of subtitles."""
    shared = {"question": "What is said?", "candidates": FIVE[:4], "level": "L1-Perception", "view_count": 7}
    shared |= {"topic_category": "NP-News-Programs", "position": [3], "question_wo_referring_query": "What?"}
    shared |= {"starting_timestamp_for_subtitles": 100, "duration": 4.0}
    write_json(
        root / "lvb_val.json",
        [
            shared
            | {
                "video_id": "a",
                "id": "a_0",
                "video_path": "a.mp4",
                "correct_choice": 1,
                "duration_group": 15,
                "question_category": "S2E",
                "subtitle_path": "a_en.json",
            },
            shared
            | {
                "video_id": "b",
                "id": "b_0",
                "video_path": "b.mp4",
                "correct_choice": 3,
                "duration_group": 600,
                "question_category": "T3O",
                "subtitle_path": "b_en.json",
            },
        ],
    )
    clock = {"start": "00:01:40.000", "end": "00:01:41.000", "line": "Good evening."}
    write_json(
        root / "subtitles/a_en.json", [clock, clock | {"start": "00:09:00.000", "end": "00:09:09.000"}]
    )
    write_json(root / "subtitles/b_en.json", [{"timestamp": [102.2, None], "text": "Late words"}])
    for place, name in enumerate("ab"):
        put(clips(tiny)[place], root, "videos", f"{name}.mp4")


MINIATURES = {
    "videomme": videomme,
    "videomme_subtitles": videomme,
    "mvbench": mvbench,
    "mlvu": mlvu,
    "nextqa": nextqa,
    "nextqa_open": nextqa_open,
    "activitynetqa": activitynetqa,
    "videochatgpt_generic": _video_chatgpt("generic", "Q"),
    "videochatgpt_temporal": _video_chatgpt("temporal", "Q"),
    "videochatgpt_consistency": _video_chatgpt("consistency", "Q1", "Q2"),
    "longvideobench": longvideobench,
    "longvideobench_subtitles": longvideobench,
    "world": lambda root, tiny: shutil.copytree(tiny / "data", root, dirs_exist_ok=True),
}
"""Task -> function (root, tiny) that makes its folder."""
