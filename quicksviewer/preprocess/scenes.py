"""A video and its scenes: PySceneDetect says where the picture changes, each scene can be had as an mp4.

`SceneReader` is at work in a decoding child; what it makes comes back as bytes.
"""

import io
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import av

from quicksviewer.utils.container import open_container, pick_stream
from quicksviewer.utils.media import MediaError
from quicksviewer.utils.registry import require
from quicksviewer.utils.video import MAX_THREADS
from quicksviewer.utils.video_av import PyAVReader

QUALITY = {"crf": "18", "preset": "veryfast"}
TICKS = 90_000
"""Of a second, in the clips."""
LOOK_WIDTH = 256
"""Longer side of what the detector looks at, as PySceneDetect itself does it."""


class SceneReader(PyAVReader):
    """`make({"what": "scenes"})` gives seconds [[start, end], ...]; `make({"what": "clip", "start": ...,
    "end": ...})` the frames on screen in [start, end) as an mp4, encoded anew to be exact to the frame."""

    @staticmethod
    def load():
        return require("scenedetect.detectors", "data"), require("scenedetect.common", "data")

    def make(self, said: dict, room: int) -> tuple[list | None, bytes]:
        """Facts and a file of at most `room` bytes. MediaError."""
        with self._errors("cannot be decoded"):
            if said["what"] == "scenes":
                return self._scenes(), b""
            clip = self._clip(said["start"], said["end"])
        if len(clip) > room:
            raise MediaError(self.path, f"a scene of {len(clip)} bytes, the limit is {room}")
        return None, clip

    def _scenes(self) -> list[list[float]]:
        detectors, common = self.load()
        detector, cuts, end, now = detectors.AdaptiveDetector(), [], 0.0, None
        shrinking = min(1.0, LOOK_WIDTH / max(self._info.width, self._info.height))
        for second, frame in self._frames(0.0, math.inf):
            now = common.FrameTimecode(
                timecode=common.Timecode(pts=round(second * TICKS), time_base=Fraction(1, TICKS)),
                fps=self._rate(),
            )
            end = second + 1 / self._info.fps
            width, height = (max(2, round(side * shrinking)) for side in (frame.width, frame.height))
            small = frame.to_ndarray(width=width, height=height, format="bgr24")
            cuts += detector.process_frame(now, small)
        if now is None:
            raise MediaError(self.path, "no frame can be decoded")
        cuts += detector.post_process(now)
        return [list(span) for span in pairwise([0.0, *sorted({cut.seconds for cut in cuts} - {0.0}), end])]

    def _clip(self, start: float, end: float) -> bytes:
        target = io.BytesIO()
        with av.open(target, "w", format="mp4") as clip:
            stream = clip.add_stream("libx264", rate=self._rate(), options=QUALITY)
            first = self._first.frame
            stream.width, stream.height = first.width // 2 * 2, first.height // 2 * 2
            stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
            stream.codec_context.time_base = Fraction(1, TICKS)
            for second, frame in self._frames(start, end):
                frame.pts, frame.time_base = round((second - start) * TICKS), Fraction(1, TICKS)
                frame.pict_type = 0
                clip.mux(stream.encode(frame))
            clip.mux(stream.encode())
        return target.getvalue()

    def _rate(self) -> Fraction:
        return Fraction(self._info.fps).limit_denominator(1001)

    def _frames(self, start: float, end: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames of the clip, with their seconds from the start of the video."""
        self._let_go()
        with open_container(self._medium) as source:
            video = pick_stream(source, self._medium, self._limits)
            video.thread_type, video.codec_context.thread_count = "AUTO", MAX_THREADS
            first = float((video.start_time or 0) * video.time_base)
            if start > 0:
                source.seek(int((start + first) / video.time_base), stream=video)
            for frame in source.decode(video):
                if frame.time is None:
                    continue
                second = frame.time - first
                if second >= end - 1e-6:
                    return
                if second >= start - 1e-6:
                    yield second, frame


SCENE_READER = "quicksviewer.preprocess.scenes:SceneReader"
