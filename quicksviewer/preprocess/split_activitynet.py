"""Cut videos into their scenes: PySceneDetect says where the picture changes, each long scene becomes an mp4.

    python -m quicksviewer.preprocess.split_activitynet --video_dir VIDEOS --output_dir CLIPS

CLIPS gets VIDEO/0000.mp4, 0001.mp4, ... (H.264, without sound) for a file VIDEO.*, and `scenes.jsonl`: which
seconds of which video each is. Scenes shorter than --min_seconds are left out, and counted.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from quicksviewer.preprocess.convert import absolute, add_means, guarded
from quicksviewer.preprocess.files import Place
from quicksviewer.preprocess.index import VIDEO_SUFFIXES
from quicksviewer.preprocess.job import Means, run_all
from quicksviewer.preprocess.task import LEDGER, to_line
from quicksviewer.utils.data_util import MediaError, MediaLimits, RootedPath, open_medium
from quicksviewer.utils.media import VIDEO_KINDS
from quicksviewer.utils.media_gate import MediaFile
from quicksviewer.utils.registry import require

SCENES, MIN_SECONDS = "scenes.jsonl", 5.0
QUALITY = {"crf": "18", "preset": "veryfast"}


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
            with open_medium(RootedPath(self.videos, self.video), VIDEO_KINDS, MediaLimits()) as medium:
                summary = self._split(medium, place, stem)
        except MediaError as error:
            return {"video": self.video, "scenes": [], "short": 0, "failed": str(error)}
        place.write(done, to_line(summary))
        return summary

    def _split(self, medium: MediaFile, place: Place, stem: str) -> dict:
        rows, short = [], 0
        for start, end in find_scenes(medium):
            if end - start < self.min_seconds:
                short += 1
                continue
            clip = f"{stem}/{len(rows):04d}.mp4"
            with place.writing(clip) as file:
                cut(medium, file, start, end)
            rows.append({"video": self.video, "clip": clip, "start_sec": start, "end_sec": end})
        return {"video": self.video, "scenes": rows, "short": short, "failed": None}


def _from_start(medium: MediaFile) -> BinaryIO:
    file = medium.reader()
    file.seek(0)  # its readers share one position
    return file


def find_scenes(medium: MediaFile) -> list[tuple[float, float]]:
    """Scenes of a video in seconds, one behind the other; a video without a cut is one. MediaError."""
    import av

    detect = require("scenedetect", "data")
    backend = require("scenedetect.backends.pyav", "data")
    try:
        with _from_start(medium) as file:
            manager = detect.SceneManager()
            manager.add_detector(detect.AdaptiveDetector())
            manager.detect_scenes(backend.VideoStreamAv(file, threading_mode="SLICE", suppress_output=True))
            scenes = manager.get_scene_list(start_in_scene=True)
    except (av.FFmpegError, detect.VideoOpenFailure, OSError) as error:
        raise MediaError(medium.name, f"cannot be decoded: {error}") from error
    return [(start.seconds, end.seconds) for start, end in scenes]


def cut(medium: MediaFile, target, start: float, end: float) -> None:
    """Write the frames on screen in [start, end) as an mp4. Exact to the frame, so they are encoded anew."""
    import av

    try:
        with _from_start(medium) as file, av.open(file) as source, av.open(target, "w", format="mp4") as clip:
            video = source.streams.video[0]
            stream = clip.add_stream("libx264", rate=video.average_rate or 25, options=QUALITY)
            stream.width, stream.height = (
                video.codec_context.width // 2 * 2,
                video.codec_context.height // 2 * 2,
            )
            stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
            stream.codec_context.time_base = Fraction(1, 90_000)
            for frame in _frames(source, video, start, end):
                clip.mux(stream.encode(frame))
            clip.mux(stream.encode())
    except av.FFmpegError as error:
        raise MediaError(medium.name, f"cannot be decoded: {error}") from error


def _frames(source, video, start: float, end: float) -> Iterator:
    """Frames of the clip, timed from its start."""
    first = float((video.start_time or 0) * video.time_base)
    if start > 0:
        source.seek(int((start + first) / video.time_base), stream=video)
    for frame in source.decode(video):
        second = frame.time - first
        if second >= end - 1e-6:
            return
        if second >= start - 1e-6:
            frame.pts, frame.time_base = round((second - start) * 90_000), Fraction(1, 90_000)
            frame.pict_type = 0
            yield frame


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
