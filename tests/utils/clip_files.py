"""Tiny real video files for tests. Every frame carries its number as eight bright or dark bars."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BARS = 8
WIDTH, HEIGHT = 64, 48


def numbered_frame(number: int) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3): bar b is bright when bit b of the number is set; a corner is red."""
    frame = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    for bar in range(BARS):
        if number >> bar & 1:
            frame[:, bar * WIDTH // BARS : (bar + 1) * WIDTH // BARS] = 220
    frame[:8, :8] = (255, 0, 0)
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that an upright frame carries."""
    bits = [frame[16:, (2 * bar + 1) * WIDTH // BARS // 2].mean() > 128 for bar in range(BARS)]
    return sum(bit << bar for bar, bit in enumerate(bits))


def write_clip(path: Path, count: int = 30, codec: str = "libx264", fps: int = 30, **how) -> Path:
    """Encode `count` numbered frames.

    `how`: gop; options of the encoder; muxing, options of the container; millis, the start of each frame;
    first, the number of frames by which the video starts late; rotation in degrees.
    """
    base = Fraction(1, 1000) if "millis" in how else Fraction(1, fps)
    ticks = how.get("millis") or [i + how.get("first", 0) for i in range(count)]
    with av.open(str(path), "w", options=how.get("muxing", {})) as container:
        stream = container.add_stream(codec, rate=fps, options=how.get("options", {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        stream.gop_size = how.get("gop", 250)
        if "rotation" in how:
            stream.set_display_rotation(how["rotation"])
        container.start_encoding()
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remuxed(source: Path, path: Path, change: Callable[[int, av.Packet], av.Packet]) -> Path:
    """A file with the packets of another one, each as `change` (number, packet) gives it."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            changed = change(number, packet)
            changed.stream = stream
            written.mux(changed)
    return path


def without_showing(source: Path, path: Path, hidden: set[int]) -> Path:
    """A VP8 file, some frames of which are decoded and not shown (RFC 6386, 9.1: show_frame)."""

    def hide(number: int, packet: av.Packet) -> av.Packet:
        letters = bytearray(bytes(packet))
        if number in hidden:
            letters[0] &= ~0x10
        changed = av.Packet(bytes(letters))
        for name in ("pts", "dts", "time_base", "is_keyframe"):
            setattr(changed, name, getattr(packet, name))
        return changed

    return remuxed(source, path, hide)


def shifted(source: Path, path: Path, by: int, fps: int = 30) -> Path:
    """A file that begins so many frames later: what comes before has times below zero."""

    def earlier(_: int, packet: av.Packet) -> av.Packet:
        ticks = int(Fraction(by, fps) / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        return packet

    return remuxed(source, path, earlier)


def write_sound(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_all(path: Path) -> np.ndarray:
    """Every frame of a file by a plain decode from start to end: uint8 (N, H, W, 3), not turned."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
