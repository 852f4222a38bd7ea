"""Containers for ffmpeg: what may be opened, and with which hands.

ffmpeg gets a descriptor of a file that passed the gate. Its only protocol is that descriptor, its demuxer is
named by us, its decoders are those of the list: a file cannot make it open anything else.
"""

import os
from contextlib import contextmanager

import av
from av.stream import Disposition

from quicksviewer.utils.media import MediaError, MediaLimits
from quicksviewer.utils.media_gate import MediaFile

CODECS = {
    "av1": ("libdav1d", "av1"),
    "h264": ("h264",),
    "hevc": ("hevc",),
    "mjpeg": ("mjpeg",),
    "mpeg1video": ("mpeg1video",),
    "mpeg2video": ("mpeg2video",),
    "mpeg4": ("mpeg4",),
    "vp8": ("vp8", "libvpx"),
    "vp9": ("vp9", "libvpx-vp9"),
}
"""Allowed video codecs -> ffmpeg's decoders of them. Rare codecs mean rarely tested code."""

WHITELISTS = {
    "protocol_whitelist": "fd",
    "codec_whitelist": ",".join(name for names in CODECS.values() for name in names),
}


def open_container(medium: MediaFile):
    """The container of a medium, from its start. Raises av.FFmpegError."""
    os.lseek(medium.fd, 0, os.SEEK_SET)
    options = {"fd": str(medium.fd), **WHITELISTS}
    # The demuxer is named, so that ffmpeg cannot choose one by itself.
    return av.open("fd:", format=medium.kind, options=options, metadata_errors="replace")


@contextmanager
def second_container(medium: MediaFile):
    """Another container of a medium that is being read: the position of the first is kept."""
    place = os.lseek(medium.fd, 0, os.SEEK_CUR)
    try:
        with open_container(medium) as container:
            yield container
    finally:
        os.lseek(medium.fd, place, os.SEEK_SET)


def pick_stream(container, medium: MediaFile, limits: MediaLimits):
    """The film among the streams. MediaError: there is none, its codec is not allowed, it is too large."""
    streams = container.streams
    films = [s for s in streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        found = ", ".join(sorted({s.type for s in streams})) or "nothing"
        raise MediaError(medium.name, f"has no video stream; found {found}")
    best = streams.best("video")
    stream = best if best in films else films[0]
    if stream.codec_context is None:
        raise MediaError(medium.name, "its video codec has no decoder here")
    if (codec := codec_of(stream)) not in CODECS:
        raise MediaError(medium.name, f"is coded in {codec}; accepted are {', '.join(CODECS)}")
    limits.check_pixels(medium.name, stream.codec_context.width, stream.codec_context.height)
    return stream


def codec_of(stream) -> str:
    """The codec of a stream, whichever decoder reads it."""
    return stream.codec_context.codec.canonical_name


def check_container(medium: MediaFile, limits: MediaLimits) -> str:
    """For decoders that open files in their own way: the codec; MediaError where ours would refuse it."""
    try:
        with second_container(medium) as container:
            return codec_of(pick_stream(container, medium, limits))
    except av.FFmpegError as error:
        raise MediaError(medium.name, f"cannot be opened: {error.strerror}") from error
