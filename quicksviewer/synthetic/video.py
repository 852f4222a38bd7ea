"""A world becomes pixels and real mp4 files. Same world, same pixels, same bytes."""

import os
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from quicksviewer.synthetic.world import BACKGROUNDS, COLOURS, MOTIONS, Event, World, WorldConfig

CODECS = {
    "h264": ("libx264", {"qp": "16", "preset": "veryfast", "x264-params": "asm=0"}),
    "mpeg4": ("mpeg4", {"qscale": "2"}),
}
"""Codec -> encoder and its options. A constant quantiser: where x264 controls its rate, its macroblock tree
makes about one of these small videos in forty differ from one run to the next. Its assembly gives other bytes
than its C, which is the same on every machine."""
SPEED = 0.11
"""Share of the picture that a moving shape travels in one second."""
STREAK, STREAK_WIDTH = 0.38, 0.2
"""Length and width of the line behind a moving shape, as shares of the picture."""
RADIUS = 0.17
"""Of a shape, as a share of the picture."""
MARGIN = 0.26
"""A shape's centre never comes nearer to a side; there it jumps to the other margin and goes on."""


def draw_frame(event: Event, second: float, size: int) -> Image.Image:
    """The picture of an event `second` seconds after the start of its video.

    What moves draws a streak behind it, like the blur of a long exposure: one frame tells the direction.
    """
    image = Image.new("RGB", (size, size), BACKGROUNDS[event.background])
    pen = ImageDraw.Draw(image)
    dx, dy = MOTIONS[event.motion]
    travelled = SPEED * (second - event.start)
    x, y = _wrap(event.place[0] + dx * travelled), _wrap(event.place[1] + dy * travelled)
    if event.motion != "still":
        ends = [(x * size, y * size), ((x - dx * STREAK) * size, (y - dy * STREAK) * size)]
        blend = _blend(COLOURS[event.colour], BACKGROUNDS[event.background])
        pen.line(ends, blend, round(size * STREAK_WIDTH))
    DRAW[event.shape](pen, x * size, y * size, size * RADIUS, COLOURS[event.colour])
    if event.word:
        font = ImageFont.load_default(size=size / 4)
        pen.text((size * 0.04, size * 0.72), event.word, fill=(255, 255, 255), font=font, stroke_width=0)
    return image


def _blend(colour, other) -> tuple[int, ...]:
    return tuple((a + b) // 2 for a, b in zip(colour, other, strict=True))


def _wrap(place: float) -> float:
    return MARGIN + (place - MARGIN) % (1 - 2 * MARGIN)


def _circle(pen, x, y, r, fill):
    pen.ellipse((x - r, y - r, x + r, y + r), fill)


def _square(pen, x, y, r, fill):
    pen.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill)


def _triangle(pen, x, y, r, fill):
    pen.polygon([(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)], fill)


def _cross(pen, x, y, r, fill):
    pen.rectangle((x - r, y - r * 0.3, x + r, y + r * 0.3), fill)
    pen.rectangle((x - r * 0.3, y - r, x + r * 0.3, y + r), fill)


DRAW = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}


def draw_video(world: World, config: WorldConfig) -> np.ndarray:
    """All frames of a world at the file's rate: uint8 (N, size, size, 3)."""
    seconds = [index / config.fps for index in range(world.seconds * config.fps)]
    return np.stack([np.asarray(draw_frame(world.at(s), s, config.size)) for s in seconds])


def write_video(path: Path, frames_NHWC: np.ndarray, fps: int, codec: str = "h264") -> None:
    """Encode frames as an mp4 file. One encoder thread, so that the bytes do not depend on the machine's
    cores."""
    encoder, options = CODECS[codec]
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=fps, options=options)
        stream.height, stream.width = frames_NHWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames_NHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)
