"""Video readers on optional packages: decord (indexes all frames at opening) and torchcodec.

They answer as the PyAV reader does; differences that their packages force are told at each class.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType

import numpy as np

from quicksviewer.utils.container import check_container
from quicksviewer.utils.media import MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile
from quicksviewer.utils.registry import require
from quicksviewer.utils.video import (
    MAX_THREADS,
    Closing,
    VideoInfo,
    check_info,
    checked_times,
    index_at,
    room_for,
)

EXTRA = "video"
"""The extra of this package that installs them."""


def package(module: str) -> ModuleType:
    """A decoder's package. ModuleNotFoundError where it is missing; ImportError where it is there and does
    not load, which is no fault of a video."""
    try:
        return require(module, EXTRA)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # torchcodec: RuntimeError, with pages of what it has tried
        first_line = str(error).strip().partition("\n")[0]
        raise ImportError(f"{module} is installed and does not load: {first_line} {ADVICE}") from error


ADVICE = (
    "(torchcodec needs the shared libraries of ffmpeg 4 to 8, on Debian: apt install ffmpeg, and the torch "
    "that it was built for; --video_decoder av needs neither)"
)


class _ForeignReader(Closing):
    """Checks before and around a decoder that is not ours."""

    def __init__(self, medium: MediaFile, limits: MediaLimits | None = None):
        """Takes the file over. MediaError when it cannot be used, ModuleNotFoundError without the package."""
        self._medium, self.path = medium, medium.name
        self._limits = limits or MediaLimits()
        try:
            self._codec = check_container(medium, self._limits)
            with self._errors("cannot be opened"):
                self._info = check_info(self._open(medium.path), self._limits)
        except BaseException:
            self.close()
            raise

    BY_PATH = True
    PACKAGE: str
    """The module that it needs."""

    def _open(self, path: str) -> VideoInfo:
        raise NotImplementedError

    @classmethod
    def load(cls) -> ModuleType:
        """What it needs. Raises as `package`."""
        return package(cls.PACKAGE)

    def probe(self) -> VideoInfo:
        return self._info

    def close(self) -> None:
        self._decoder = None
        self._medium.close()

    @contextmanager
    def _errors(self, doing: str):
        try:
            yield
        except (MediaError, ImportError):
            raise
        # Their errors have no common class: RuntimeError, ValueError, DECORDError (an Exception), ...
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise MediaError(self.path, f"{doing}: {first_line}") from error


class DecordReader(_ForeignReader):
    """decord: not exact everywhere.

    Its times are single precision: hours into a video, near the border of two frames, either may come. In
    open groups of pictures (frames refer to frames before a key frame) its jumps can give damaged frames.
    It refuses recordings that state no length.
    """

    PACKAGE = "decord"
    SLACK = 5e-4
    """Seconds by which a time may miss the start of a frame."""

    def _open(self, path: str) -> VideoInfo:
        decord = self.load()
        self._decoder = decord.VideoReader(path, num_threads=MAX_THREADS)
        count, fps = len(self._decoder), float(self._decoder.get_avg_fps())
        if not count:
            raise MediaError(self.path, "no frame can be decoded")
        span_F2 = self._decoder.get_frame_timestamp(range(count)).astype(np.float64)
        self._starts_F = span_F2[:, 0] - span_F2[0, 0]
        duration = span_F2[-1, 1] - span_F2[0, 0]
        if not (np.abs(span_F2) < 1e9).all() or (np.diff(self._starts_F) < 0).any() or duration <= 0:
            # AVI has no presentation times, and decord gives what was in memory.
            self._starts_F, duration = np.arange(count) / fps, count / fps
        height, width = self._decoder[0].shape[:2]
        who = (self._codec, "decord", decord.__version__)
        return VideoInfo(self.path, float(duration), count, fps, width, height, *who)

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        index_N = index_at(self._starts_F, checked_times(times), self.SLACK)
        pixels_NHWC = room_for(len(index_N), self._info, self._limits) if out is None else out
        with self._errors("damaged"):
            for index in np.unique(index_N):
                pixels_NHWC[index_N == index] = self._frame(int(index))
        return pixels_NHWC

    def _frame(self, index: int) -> np.ndarray:
        """One frame, uint8 (H, W, 3). In narrow videos decord takes the padding of rows for a 4th channel."""
        height, width = self._info.height, self._info.width
        rows = self._decoder[index].asnumpy().reshape(height, -1)
        return rows[:, : 3 * width].reshape(height, width, 3)


class TorchCodecReader(_ForeignReader):
    """torchcodec: needs the shared libraries of ffmpeg on the machine.

    It cannot read AVI with B-frames (MediaError). A live recording, which states no lengths, ends for it with
    the start of the last frame, so that this frame is out of reach.
    """

    PACKAGE = "torchcodec.decoders"
    SLACK = 1e-6

    def _open(self, path: str) -> VideoInfo:
        decoders = self.load()
        self._decoder = decoders.VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=MAX_THREADS)
        facts = self._decoder.metadata
        self._begin = float(facts.begin_stream_seconds)
        duration = float(facts.end_stream_seconds) - self._begin
        height, width = self._decoder[0].shape[:2]
        fps = float(facts.average_fps)
        who = (self._codec, "torchcodec", version("torchcodec"))
        return VideoInfo(self.path, duration, int(facts.num_frames), fps, width, height, *who)

    def frames_at(self, times: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
        seconds_N = checked_times(times) + self.SLACK
        pixels_NHWC = room_for(len(seconds_N), self._info, self._limits) if out is None else out
        if len(seconds_N):
            # It refuses what lies outside the video.
            inside_N = self._begin + seconds_N.clip(0, self._info.duration - self.SLACK)
            with self._errors("damaged"):
                pixels_NHWC[:] = self._decoder.get_frames_played_at(inside_N.tolist()).data.numpy()
        return pixels_NHWC
