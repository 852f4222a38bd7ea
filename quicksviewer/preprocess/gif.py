"""A GIF becomes a video: the same pictures at the same times, as H.264 in mp4.

One picture is in memory at a time. `GifReader` is at work in a decoding child where the limits ask for one.
"""

import io
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from PIL import ImageSequence

from quicksviewer.utils.data_util import READER_OF
from quicksviewer.utils.image import opened, to_rgb
from quicksviewer.utils.media import MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile, open_medium
from quicksviewer.utils.video import Closing, VideoInfo

GIF_FRAMES, GIF_PAUSE = 20_000, 100
"""Most pictures of a GIF; milliseconds of one whose file says none, as browsers show it."""
ROOM = 2**30
"""Most bytes of the mp4."""
GIF_READER = "quicksviewer.preprocess.gif:GifReader"


def gif_to_mp4(data: bytes, name: str, limits: MediaLimits) -> bytes:
    """The mp4 of a GIF's bytes; `name` is for messages. MediaError when it is no usable GIF."""
    try:
        with READER_OF[limits.isolation](GIF_READER, open_medium(data, ("GIF",), limits), limits) as reader:
            return reader.make({}, ROOM)[1]
    except MediaError as error:
        raise type(error)(name, error.reason) from error


class GifReader(Closing):
    """`make({})` gives the mp4."""

    def __init__(self, medium: MediaFile, limits: MediaLimits):
        """Takes the file over. MediaError when it cannot be a video."""
        self._medium, self._limits = medium, limits
        try:
            with opened(medium, limits) as image:
                self._width, self._height = (side // 2 * 2 for side in image.size)
                found = "{}x{}".format(*image.size)
            if not self._width or not self._height:
                raise MediaError(medium.name, f"{found} is too small for a video")
        except BaseException:
            self.close()
            raise

    def probe(self) -> VideoInfo:
        return VideoInfo(self._medium.name, 1.0, 1, 1.0, self._width, self._height, "GIF")

    def close(self) -> None:
        self._medium.close()

    def make(self, said: dict, room: int) -> tuple[None, bytes]:
        """A file of at most `room` bytes. MediaError."""
        mp4 = _encoded(self._pictures(), self._width, self._height)
        if len(mp4) > room:
            raise MediaError(self._medium.name, f"a video of {len(mp4)} bytes, the limit is {room}")
        return None, mp4

    def _pictures(self) -> Iterator[tuple[np.ndarray, int]]:
        """Pictures, uint8 (H, W, 3) of even sides, and how long each is shown, in milliseconds."""
        most = min(GIF_FRAMES, self._limits.max_decoded_bytes // (self._width * self._height * 3))
        with opened(self._medium, self._limits) as image:
            for number, picture in enumerate(ImageSequence.Iterator(image)):
                if number == most:
                    reason = f"more than {most} pictures, or than may be decoded at once"
                    raise MediaError(self._medium.name, reason)
                millis = int(picture.info.get("duration") or GIF_PAUSE)
                yield np.asarray(to_rgb(picture))[: self._height, : self._width], millis


def _encoded(pictures: Iterator[tuple[np.ndarray, int]], width: int, height: int) -> bytes:
    import av

    base, start, target, waiting = Fraction(1, 1000), 0, io.BytesIO(), []

    def write(packets) -> None:
        for packet in packets:
            packet.duration = waiting.pop(0)
            container.mux(packet)

    with av.open(target, "w", format="mp4") as container:
        # Without B-frames a packet is a frame, so that each can be told how long it lasts.
        stream = container.add_stream("libx264", options={"crf": "18", "preset": "veryfast", "bf": "0"})
        stream.height, stream.width = height, width
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        stream.codec_context.thread_count = 1
        for picture, millis in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = start, base
            waiting.append(millis)
            write(stream.encode(frame))
            start += millis
        write(stream.encode())
    return target.getvalue()
