"""Cut videos into their scenes: PySceneDetect says where the picture changes, each long scene becomes an mp4.

    python -m quicksviewer.preprocess.split_activitynet --video_dir VIDEOS --output_dir CLIPS

CLIPS gets VIDEO/0000.mp4, 0001.mp4, ... (H.264, without sound) for a file VIDEO.*, and `scenes.jsonl`: which
seconds of which video each is. Scenes shorter than --min_seconds are left out, and counted.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quicksviewer.preprocess.convert import absolute, add_means, guarded
from quicksviewer.preprocess.files import Place
from quicksviewer.preprocess.index import VIDEO_SUFFIXES
from quicksviewer.preprocess.job import Means, run_all
from quicksviewer.preprocess.scenes import SCENE_READER
from quicksviewer.preprocess.task import LEDGER, to_line
from quicksviewer.utils.data_util import MediaError, MediaLimits, RootedPath, open_medium, open_video
from quicksviewer.utils.decode_pool import IsolatedReader
from quicksviewer.utils.media import VIDEO_KINDS
from quicksviewer.utils.registry import require

SCENES, MIN_SECONDS = "scenes.jsonl", 5.0
LEAST_SECONDS, SLOWNESS = 300.0, 4.0
"""Seconds that a video may take, and more for each second that it lasts."""
MAX_CLIP = 2**30
"""Bytes of a clip."""


@dataclass(frozen=True)
class SplitTask:
    """Cuts one video; its scenes are written last, and are not found twice."""

    videos: str
    video: str
    output: str
    min_seconds: float

    def __call__(self) -> dict:
        """scenes: rows of scenes.jsonl; short: number of scenes that were too short; failed: why, or null."""
        place, stem = Place(self.output), str(PurePosixPath(self.video).with_suffix(""))
        done = f"{stem}/{SCENES}"
        if place.exists(done):
            return json.loads(place.read(done))
        try:
            summary = self._split(RootedPath(self.videos, self.video), place, stem)
        except MediaError as error:
            return {"video": self.video, "scenes": [], "short": 0, "failed": str(error)}
        place.write(done, to_line(summary))
        return summary

    def _split(self, path: RootedPath, place: Place, stem: str) -> dict:
        """In a child that is killed when it takes too long. MediaError."""
        with open_video(path, limits=MediaLimits(isolation="process")) as video:
            limits = allowance(video.probe().duration)
        rows, short = [], 0
        with IsolatedReader(SCENE_READER, open_medium(path, VIDEO_KINDS, limits), limits) as video:
            for start, end in video.make({"what": "scenes"}, room=1)[0]:
                if end - start < self.min_seconds:
                    short += 1
                    continue
                clip = f"{stem}/{len(rows):04d}.mp4"
                place.write(clip, video.make({"what": "clip", "start": start, "end": end}, MAX_CLIP)[1])
                rows.append({"video": self.video, "clip": clip, "start_sec": start, "end_sec": end})
        return {"video": self.video, "scenes": rows, "short": short, "failed": None}


def allowance(duration: float) -> MediaLimits:
    """Of a video of so many seconds: all of it is decoded twice and encoded once."""
    return MediaLimits(isolation="process", decode_seconds=LEAST_SECONDS + SLOWNESS * duration)


def main(argv: list[str] | None = None) -> int:
    """Exit code as in convert.py; 1 when a video could not be cut."""
    parser = argparse.ArgumentParser(prog="quicksviewer preprocess split_activitynet", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--video_dir", "--input", required=True)
    parser.add_argument("--output_dir", "--output", required=True)
    parser.add_argument("--min_seconds", type=float, default=MIN_SECONDS)
    add_means(parser)
    args = parser.parse_args(argv)
    return guarded(lambda: _split_all(args))


def _split_all(args: argparse.Namespace) -> int:
    require("scenedetect", "data")
    folder, output = absolute(args.video_dir), absolute(args.output_dir)
    videos = [name for name in Place(folder).names() if name.lower().endswith(VIDEO_SUFFIXES)]
    stems = [str(PurePosixPath(name).with_suffix("")) for name in videos]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f"several videos would be cut into the folder {', '.join(twice[:5])}: rename them")
    if not videos:
        raise ValueError(f"no videos below {folder}")
    tasks = [SplitTask(folder, name, output, args.min_seconds) for name in videos]
    results = run_all(tasks, Means(runner=args.runner, num_workers=args.num_workers), "videos")
    failed = [result for result in results if result["failed"]]
    Place(output).write(SCENES, b"".join(to_line(row) for result in results for row in result["scenes"]))
    lost = ({"video": result["video"], "reason": result["failed"]} for result in failed)
    Place(output).write(LEDGER, b"".join(map(to_line, lost)))
    scenes, short = (
        sum(counts) for counts in zip(*((len(r["scenes"]), r["short"]) for r in results), strict=True)
    )
    print(f"{scenes} scenes of {len(videos) - len(failed)} videos, {short} shorter than {args.min_seconds} s")
    if failed:
        print(f"error: {len(failed)} videos could not be cut, see {Path(output) / LEDGER}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
