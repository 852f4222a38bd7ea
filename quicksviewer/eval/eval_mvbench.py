"""MVBench (arXiv 2311.17005): twenty tasks of 200 questions about short clips.

Published as a folder of `json/TASK.json`, a list of {video, question, candidates, answer} and, where a task
asks about a part of a video, start and end in seconds; videos lie in folders of their own below `video/`. One
task is published as pictures, three a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quicksviewer.eval import choice
from quicksviewer.eval.files import find_file, find_folder, find_video, letter_of_text, read_rows
from quicksviewer.eval.frame_folder import FrameFolder
from quicksviewer.eval.task import Benchmark, Item


@dataclass(frozen=True)
class Source:
    """Where the videos of a task lie; whether its rows name a part of them; their rate, where they are
    pictures."""

    folder: str
    has_clips: bool = False
    fps: float | None = None


TASKS = {
    "action_sequence": Source("star/Charades_v1_480", has_clips=True),
    "action_prediction": Source("star/Charades_v1_480", has_clips=True),
    "action_antonym": Source("ssv2_video"),
    "fine_grained_action": Source("Moments_in_Time_Raw/videos"),
    "unexpected_action": Source("FunQA_test/test"),
    "object_existence": Source("clevrer/video_validation"),
    "object_interaction": Source("star/Charades_v1_480", has_clips=True),
    "object_shuffle": Source("perception/videos"),
    "moving_direction": Source("clevrer/video_validation"),
    "action_localization": Source("sta/sta_video", has_clips=True),
    "scene_transition": Source("scene_qa/video"),
    "action_count": Source("perception/videos"),
    "moving_count": Source("clevrer/video_validation"),
    "moving_attribute": Source("clevrer/video_validation"),
    "state_change": Source("perception/videos"),
    "fine_grained_pose": Source("nturgbd"),
    "character_order": Source("perception/videos"),
    "egocentric_navigation": Source("vlnqa"),
    "episodic_reasoning": Source("tvqa/frames_fps3_hq", has_clips=True, fps=3.0),
    "counterfactual_inference": Source("clevrer/video_validation"),
}
"""Name of the file and of the kind -> its videos."""


def samples(data: Path, videos: Path | None = None) -> Iterator[Item]:
    """Items of all twenty tasks. ValueError where one of them has no file."""
    root = videos or find_folder(data, "video", "videos")
    for task, source in TASKS.items():
        folder = root / source.folder
        for number, row in enumerate(read_rows(find_file(data, f"json/{task}.json", f"{task}.json"))):
            name, question, options, answer = row.need("video", "question", "candidates", "answer")
            start, end = row.need("start", "end") if source.has_clips else (None, None)
            video = FrameFolder(str(folder / name), source.fps) if source.fps else find_video(folder, name)
            yield Item(
                uid=f"{task}-{number}",
                video=video,
                questions=(question,),
                answer=letter_of_text(row, answer, options),
                options=tuple(map(str, options)),
                kind=task,
                chance=1 / len(options),
                where=row.where,
                start=None if start is None else float(start),
                end=None if end is None else float(end),
            )


MVBENCH = Benchmark(
    samples=samples,
    prompt=choice.PROMPT,
    score=choice.score_letter,
    metrics=choice.METRICS,
    max_new_tokens=choice.MAX_NEW_TOKENS,
)
