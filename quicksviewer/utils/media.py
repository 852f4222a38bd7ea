"""What a media file really is, told from its bytes before any decoder sees it.

A name proves nothing: a playlist called `.mp4` would make a decoder open other files or addresses. So a file
is opened only when its first bytes are those of an allowed kind, it is whole as far as its own structure
tells, and it stays inside the limits.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import BinaryIO, Literal, get_args

HEAD_BYTES = 512
"""How much of a file is read to tell its kind."""
EXPANSION_FLOOR = 2**24
"""Decoded bytes below which a picture may be packed however densely: blank pages are."""
MAX_BOXES = 2**18
"""Boxes at the top of an mp4: a recording in fragments of a second has two of them a second."""


class MediaError(Exception):
    """A medium that cannot be used. `str()` is "PATH: REASON"."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(os.fspath(path), reason)
        self.path, self.reason = self.args

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DecoderLost(MediaError):
    """The decoder came to a limit of time or memory, or crashed. It says nothing lasting of the medium: on a
    machine with less to do, or under other limits, it may be read."""


Isolation = Literal["none", "process"]
"""Where media are decoded: in this process, or in a child that can be killed (utils/decode_pool.py)."""


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What is refused before memory is taken for it, and how a decoder is held to its promises."""

    max_pixels: int = 2**26
    """Width times height of one picture."""
    max_seconds: float = 24 * 3600
    """Length of a video."""
    max_frames: int = 2**23
    """Frames of a video: a day at 97 frames per second."""
    max_pictures: int = 2**16
    """Pictures of one row of a store: 18 hours at one per second."""
    max_bytes: int = 2**36
    """Size of a file."""
    max_memory_bytes: int = 2**30
    """Size of what comes in memory: a row of a store, a member of an archive, an upload."""
    max_decoded_bytes: int = 2**34
    """Decoded frames that one call may return."""
    max_expansion: float = 10_000
    """Decoded bytes of a picture per encoded byte. Pictures of less than EXPANSION_FLOOR may have more."""
    max_links: int = 1
    """Names (hard links) of a file under a media root: of a second one nobody knows where it lies."""
    isolation: Isolation = "none"
    decode_seconds: float = 300
    """With isolation "process": how long a decoder may work on a medium, all its calls together."""
    decode_memory: int = 2**32
    """With isolation "process": bytes that a decoder may hold, beside the frames that it returns."""

    def __post_init__(self):
        if self.isolation not in get_args(Isolation):
            raise ValueError(f"isolation must be one of {get_args(Isolation)}, got {self.isolation!r}")
        for field in fields(self):
            if field.name != "isolation" and not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")

    def check_pixels(self, path: str | os.PathLike, width: int, height: int) -> None:
        """Raises MediaError when a picture is too large."""
        if width * height > self.max_pixels:
            reason = f"{width}x{height} is {width * height} pixels, the limit is {self.max_pixels}"
            raise MediaError(path, reason)

    def check_bytes(self, path: str | os.PathLike, size: int) -> None:
        """Raises MediaError when an encoded file is too large."""
        if size > self.max_bytes:
            raise MediaError(path, f"{size} bytes, the limit is {self.max_bytes}")

    def check_memory(self, path: str | os.PathLike, size: int) -> None:
        """Raises MediaError when something is too large to be held in memory. Ask before reading it."""
        if size > self.max_memory_bytes:
            raise MediaError(path, f"{size} bytes in memory, the limit is {self.max_memory_bytes}")

    def check_pictures(self, path: str | os.PathLike, count: int) -> None:
        """Raises MediaError when a row of a store has too many pictures. Ask before parsing them."""
        if count > self.max_pictures:
            raise MediaError(path, f"{count} pictures in one row, the limit is {self.max_pictures}")

    def check_expansion(self, path: str | os.PathLike, encoded: int, width: int, height: int) -> None:
        """Raises MediaError when a picture is a bomb: few bytes that become very many."""
        decoded = width * height * 3
        if decoded > EXPANSION_FLOOR and decoded > self.max_expansion * encoded:
            reason = f"{encoded} bytes become {decoded}, the limit is {self.max_expansion} for each"
            raise MediaError(path, reason)


SIGNATURES: tuple[tuple[str, dict[int, bytes]], ...] = (
    ("HEIF image", {4: b"ftypheic"}),
    ("HEIF image", {4: b"ftypmif1"}),
    ("AVIF image", {4: b"ftypavif"}),
    ("JPEG 2000 image", {4: b"ftypjp2 "}),
    ("mp4", {4: b"ftyp"}),
    ("mp4", {4: b"moov"}),
    ("mp4", {4: b"mdat"}),
    ("mp4", {4: b"wide"}),
    ("mp4", {4: b"free"}),
    ("mp4", {4: b"skip"}),
    ("mp4", {4: b"pnot"}),
    ("matroska", {0: b"\x1a\x45\xdf\xa3"}),
    ("avi", {0: b"RIFF", 8: b"AVI "}),
    ("JPEG", {0: b"\xff\xd8\xff"}),
    ("PNG", {0: b"\x89PNG\r\n\x1a\n"}),
    ("WEBP", {0: b"RIFF", 8: b"WEBP"}),
    ("GIF", {0: b"GIF8"}),
    ("BMP", {0: b"BM", 6: b"\0\0\0\0"}),
    ("playlist", {0: b"#EXTM3U"}),
    ("playlist", {0: b"ffconcat"}),
    ("playlist", {0: b"[playlist]"}),
    ("JPEG 2000 image", {4: b"jP  \r\n\x87\n"}),
    ("JPEG 2000 image", {0: b"\xff\x4f\xff\x51"}),
    ("JPEG XL image", {4: b"JXL \r\n\x87\n"}),
    ("TIFF image", {0: b"II*\0"}),
    ("TIFF image", {0: b"MM\0*"}),
    ("TIFF image", {0: b"II+\0"}),
    ("TIFF image", {0: b"MM\0+"}),
    ("PostScript", {0: b"%!PS"}),
    ("PostScript", {0: b"\xc5\xd0\xd3\xc6"}),
    ("Photoshop image", {0: b"8BPS"}),
    ("icon", {0: b"\0\0\1\0"}),
    ("MPEG transport stream", {0: b"\x47", 188: b"\x47"}),
    ("MPEG program stream", {0: b"\x00\x00\x01\xba"}),
    ("Flash video", {0: b"FLV\x01"}),
    ("Ogg file", {0: b"OggS"}),
    ("Windows media file", {0: b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"}),
    ("WAV sound", {0: b"RIFF", 8: b"WAVE"}),
    ("MP3 sound", {0: b"ID3"}),
    ("PDF document", {0: b"%PDF"}),
    ("zip archive", {0: b"PK\x03\x04"}),
    ("gzip archive", {0: b"\x1f\x8b"}),
)
"""Kind and the bytes at its offsets. The first row that fits wins."""

VIDEO_KINDS = ("mp4", "matroska", "avi")
"""Allowed containers: mp4 with mov, matroska with webm, avi. The words are also names of ffmpeg demuxers."""
IMAGE_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Allowed picture formats, under their names in PIL."""


def sniff(head: bytes) -> str:
    """The kind of content that starts with these bytes, in words that fit into a message."""
    for kind, marks in SIGNATURES:
        if all(head[at : at + len(mark)] == mark for at, mark in marks.items()):
            return kind
    if _is_text(head):
        return "text"
    return f"unknown content ({head[:8].hex(' ')} ...)"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")  # the last letter was cut in two
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def check_kind(path: str | os.PathLike, head: bytes, allowed: Iterable[str]) -> str:
    """The kind of content, when it is an allowed one. Raises MediaError with what was found."""
    if not head:
        raise MediaError(path, "is empty")
    kind = sniff(head)
    if kind not in allowed:
        raise MediaError(path, f"is {kind}; accepted are {', '.join(allowed)}")
    return kind


@contextmanager
def os_errors(path: str | os.PathLike):
    """Errors of the file system become MediaError."""
    try:
        yield
    except OSError as error:
        raise MediaError(path, (error.strerror or str(error)).lower()) from error


def check_whole(path: str | os.PathLike, kind: str, file: BinaryIO, size: int) -> None:
    """Raises MediaError when a file of an allowed kind is truncated, as far as its structure tells."""
    if (damage_of := WHOLE_CHECKS.get(kind)) and (damage := damage_of(file, size)):
        raise MediaError(path, damage)


def _mp4_damage(file: BinaryIO, size: int) -> str | None:
    """Walk the boxes: none of weight may reach past the end of the file, the index (moov) must be there."""
    position, seen, boxes = 0, set(), 0
    while position + 8 <= size:
        if (boxes := boxes + 1) > MAX_BOXES:
            return f"more than {MAX_BOXES} boxes, as no recorder writes them"
        file.seek(position)
        header = file.read(16)
        length, name = int.from_bytes(header[:4]), header[4:8]
        if length == 1:  # the length did not fit and stands behind the name
            length = int.from_bytes(header[8:16])
        elif length == 0:  # up to the end of the file
            length = size - position
        if length < 8:
            break  # padding or junk after the last box
        seen.add(name)
        position += length
        if position > size and name in (b"moov", b"mdat", b"moof"):
            return f"truncated: its {name.decode()} box ends at byte {position}, the file at {size}"
    return None if b"moov" in seen else "truncated: an mp4 without a moov box, its recording was not finished"


def _matroska_damage(file: BinaryIO, size: int) -> str | None:
    """The segment, which holds everything, must not reach past the end of the file."""
    file.seek(4)
    header_length, position = _read_vint(file, 4)
    position += header_length
    file.seek(position)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None if position < size else "truncated: a matroska header and nothing behind it"
    length, position = _read_vint(file, position + 4)
    if position + length > size:
        return f"truncated: its segment ends at byte {position + length}, the file at {size}"
    return None


def _read_vint(file: BinaryIO, position: int) -> tuple[int, int]:
    """An EBML length and the position behind it. "Unknown length" (all ones, live recordings) reads as 0."""
    first = file.read(1)
    width = 9 - first[0].bit_length() if first and first[0] else 1
    bits = 7 * width
    value = int.from_bytes(first + file.read(width - 1)) & ((1 << bits) - 1)
    return (0 if value == (1 << bits) - 1 else value), position + width


def _avi_damage(file: BinaryIO, size: int) -> str | None:
    """The first RIFF chunk must not reach past the end of the file. Live recorders leave its length open."""
    file.seek(4)
    length = int.from_bytes(file.read(4), "little")
    if length != 0xFFFFFFFF and length + 8 > size + 1:  # a missing byte of padding does not matter
        return f"truncated: its RIFF chunk ends at byte {length + 8}, the file at {size}"
    return None


WHOLE_CHECKS: dict[str, Callable[[BinaryIO, int], str | None]] = {
    "mp4": _mp4_damage,
    "matroska": _matroska_damage,
    "avi": _avi_damage,
}
"""Kind to a function (file, size) that says what is missing of the file, or None."""
