"""What a PNG says of itself, before its pixels and behind them, without unpacking them.

Programs may write how a picture is turned behind it, where PIL looks only when it has decoded everything.
"""

import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = (b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Size, and all chunks in which a turn may be written."""
MAX_CHUNKS, MAX_KEPT = 2**18, 2**24
"""What comes behind so many chunks, or bytes of those that are kept, is not looked at."""


def without_pixels(file: BinaryIO) -> bytes:
    """A PNG of the same size and words, with nothing to decode."""
    pieces, position, kept = [SIGNATURE], len(SIGNATURE), 0
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        length, name = int.from_bytes(file.read(4)), file.read(4)
        position += 12 + length
        if len(name) < 4 or name == b"IEND":
            break
        if name in KEPT and (kept := kept + length) <= MAX_KEPT:
            pieces.append(_chunk(name, file.read(length)))
    return b"".join([*pieces, _chunk(b"IDAT", b""), _chunk(b"IEND", b"")])


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)
