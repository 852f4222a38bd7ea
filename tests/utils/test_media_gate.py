"""The gate: which content and sizes pass, and that nothing enters beside it (Sec5, Sec6)."""

import ast
import base64
import json
import os
import socket
import struct
import zlib
from pathlib import Path

import pytest
from clip_files import write_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from refusals import ALL_KINDS, encoded, refuse

import quicksviewer
from quicksviewer.utils import media_gate
from quicksviewer.utils.data_util import (
    VIDEO_READERS,
    MediaError,
    MediaLimits,
    RootedPath,
    load_image,
    open_medium,
    open_video,
)
from quicksviewer.utils.image import image_size
from quicksviewer.utils.media import EXPANSION_FLOOR, IMAGE_KINDS, SIGNATURES, VIDEO_KINDS
from quicksviewer.utils.packets import read_packets
from quicksviewer.utils.tsv import TSVReader, TSVWriter


def png(width: int, height: int, pixels: bytes = b"", *chunks: bytes, bits: int = 8) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    pieces = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(pixels, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", count=8)


# Content (Sec5)


def test_the_allowed_pictures_and_videos_pass(tmp_path, clip):
    for kind in IMAGE_KINDS:
        path = tmp_path / "wrong_name.mp4"
        path.write_bytes(encoded(kind))
        with open_medium(path, ALL_KINDS) as medium:
            assert (medium.kind, medium.size) == (kind, len(encoded(kind)))
            assert medium.reader().read() == encoded(kind)
    for source in (clip, clip.read_bytes()):
        with open_medium(source, ALL_KINDS) as medium:
            assert (medium.kind, medium.size) == ("mp4", clip.stat().st_size)
    with pytest.raises(OSError):
        os.fstat(medium.fd)


STRANGERS = {
    "HLS playlist": b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\n{canary}\n#EXT-X-ENDLIST\n",
    "ffconcat": b"ffconcat version 1.0\nfile {canary}\n",
    "concat list": b"file '{canary}'\n",
    "pls playlist": b"[playlist]\nFile1={canary}\n",
    "DASH": b'<?xml version="1.0"?><MPD><BaseURL>{canary}</BaseURL></MPD>',
    "SDP": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="{canary}"/></svg>',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n({canary}) (r) file\n",
    "TIFF": b"II*\0\x08\0\0\0" + bytes(64),
    "BigTIFF": b"MM\0+\0\x08\0\0" + bytes(64),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64),
    "JPEG 2000 stream": b"\xff\x4f\xff\x51\0\x29" + bytes(64),
    "JPEG 2000 as ftyp": b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 " + bytes(64),
    "HEIF": b"\0\0\0\x18ftypheic" + bytes(64),
    "icon": b"\0\0\1\0\1\0" + bytes(64),
    "Photoshop": b"8BPS\0\1" + bytes(64),
    "a playlist behind an mp4 start": b"\0\0\0\x18ftypisom\0\0\0\0isomiso2\n#EXTM3U\n{canary}\n",
    "zip": b"PK\x03\x04" + bytes(64),
    "pickle": b"\x80\x04\x95" + bytes(64),
    "nothing": b"",
}


@pytest.fixture(scope="module")
def canary():
    """An address that nobody may ask: (address, function that says whether somebody did)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def was_asked() -> bool:
            try:
                server.accept()[0].close()
                return True
            except BlockingIOError:
                return False

        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.ts", was_asked


@pytest.mark.parametrize("name", ["picture.png", "film.mp4"])
@pytest.mark.parametrize("case", STRANGERS)
def test_what_is_not_allowed_is_refused_by_its_content(tmp_path, canary, case, name):
    address, was_asked = canary
    content = STRANGERS[case].replace(b"{canary}", address.encode())
    path = tmp_path / name
    path.write_bytes(content)
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    for source in (path, content, url, RootedPath(tmp_path, name)):
        refuse(lambda source=source: load_image(source), "accepted are", "is empty", "without a moov")
        for decoder in ("av", "decord"):
            look = lambda s=source, d=decoder: open_video(s, d)  # noqa: E731
            refuse(look, "accepted are", "is empty", "without a moov")
    assert not was_asked()


def test_every_signature_is_reachable():
    """No row of the table hides behind another kind's row."""
    for kind, marks in SIGNATURES:
        head = bytearray(512)
        for at, mark in marks.items():
            head[at : at + len(mark)] = mark
        assert media_gate.check_kind("x", bytes(head), {kind}) == kind


@pytest.mark.parametrize("codec", ["jpeg2000", "ffv1", "rawvideo"])
@pytest.mark.parametrize("decoder", ["av", "decord"])
def test_codecs_that_are_not_on_the_list_are_refused(tmp_path, codec, decoder):
    path = write_clip(tmp_path / "film.mkv", count=2, codec=codec)
    refuse(lambda: open_video(path, decoder), f"is coded in {codec}; accepted are av1, h264")
    here = MediaLimits()  # a child would take its time to start
    refuse(lambda: read_packets(path, here), f"is coded in {codec}")


def test_messages_hold_no_addresses_of_memory():
    """Pillow's own words do, which once told attackers where to write."""
    for junk in (b"\x89PNG\r\n\x1a\n" + bytes(99), b"\xff\xd8\xff" + bytes(9), b"GIF89a", b"BM" + bytes(60)):
        assert "0x" not in refuse(lambda junk=junk: load_image(junk), "damaged")


# Size (Sec6)


BOMBS = {
    "pixels": (png(30_000, 30_000), "900000000 pixels"),
    "blank pixels": (encoded("WEBP", (8000, 8000), lossless=True), "bytes become 192000000"),
    "one bit": (png(8000, 8000, bytes(8000 * 1001), bits=1), "bytes become 192000000"),
    "text": (png(2, 2, bytes(6), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9))), "damaged PNG"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("look", [load_image, image_size])
def test_bombs_do_not_go_off(name, look):
    content, reason = BOMBS[name]
    refuse(lambda: look(content), reason)
    refuse(lambda: look(f"data:image/png;base64,{base64.b64encode(content).decode()}"), reason)


def test_the_turn_of_a_png_may_stand_behind_its_pixels_and_nothing_is_decoded(monkeypatch):
    """As exiftool writes it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content, late = png(2, 1, bytes(7)), chunk(b"eXIf", exif.tobytes()[6:])
    turned = content[:-12] + late + content[-12:]
    assert load_image(turned).size == (1, 2) and load_image(content).size == (2, 1)
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("its pixels were decoded"))
    assert image_size(turned) == (1, 2) and image_size(content) == (2, 1)
    broken = content.replace(b"IDAT", b"IDAX")
    assert image_size(content[:50] + b"\xff" * 9) == (2, 1) and refuse(lambda: image_size(broken))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_half_a_turn_is_damage(kind):
    content = encoded(kind, exif=b"Exif\0\0II*\0")
    for look in (load_image, image_size):
        refuse(lambda look=look: look(content), f"damaged {kind}")


def test_blank_pages_are_no_bombs():
    side = int((EXPANSION_FLOOR / 3) ** 0.5)
    assert load_image(encoded("WEBP", (side, side), lossless=True)).size == (side, side)
    assert load_image(encoded("PNG", (4000, 4000))).size == (4000, 4000)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_bytes": 99}, "bytes, the limit is 99"),
        ({"max_memory_bytes": 99}, "bytes in memory, the limit is 99"),
        ({"max_pixels": 99}, "pixels, the limit is 99"),
    ],
)
def test_limits_hold_for_every_kind_of_source(clip, limits, reason):
    content, small = clip.read_bytes(), MediaLimits(**limits)
    url = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
    for source in (content, url, *([clip] if "max_memory_bytes" not in limits else [])):
        refuse(lambda s=source: open_video(s, limits=small), reason)


@pytest.mark.parametrize(
    ("limits", "reason"), [({"max_frames": 7}, "has 8 frames"), ({"max_seconds": 0.1}, "lasts")]
)
@pytest.mark.parametrize("isolation", ["none", "process"])
def test_limits_of_length(clip, limits, reason, isolation):
    with pytest.raises(MediaError, match=reason):
        open_video(clip, limits=MediaLimits(isolation=isolation, **limits))


def test_a_row_of_a_hundred_thousand_frames_is_refused_unread(tmp_path):
    with TSVWriter(tmp_path) as store:
        store.append("a", [encoded("JPEG")])
    row = b"a\t" + json.dumps(["A" * 800] * 100_000).encode() + b"\n"
    (tmp_path / "imgs.tsv").write_bytes(row)
    (tmp_path / "imgs.last").write_text(f"{len(row)}\n")
    with TSVReader(tmp_path) as store:
        refuse(lambda: store.frames("a", [0]), "pictures in one row, the limit is 65536")
    with TSVReader(tmp_path, MediaLimits(max_memory_bytes=10**6)) as store:
        refuse(lambda: store.as_video("a"), "bytes in memory")


def test_an_mp4_of_endless_boxes_is_refused(tmp_path):
    path = tmp_path / "boxes.mp4"
    path.write_bytes(b"\0\0\0\x10ftypisom" + bytes(4) + b"\0\0\0\x08free" * 2**20)
    with pytest.raises(MediaError, match="more than 262144 boxes"):
        open_video(path)


def test_a_refused_file_is_closed():
    before = len(os.listdir("/proc/self/fd"))
    for content in STRANGERS.values():
        with pytest.raises(MediaError):
            open_medium(content, ALL_KINDS)
    assert len(os.listdir("/proc/self/fd")) == before


# One gate


def by_processor(tiny):
    from tiny_world import fresh

    processor = fresh(tiny).processor.with_media(isolation="none")
    return {
        "processor, image": processor.load_image,
        "processor, video": processor.load_video,
        "messages": lambda ref: processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "path": ref}]}], tokenize=True
        ),
    }


@pytest.fixture(scope="module")
def entries(tiny):
    videos = {decoder: lambda ref, name=decoder: open_video(ref, name) for decoder in VIDEO_READERS}
    isolated = MediaLimits(isolation="process")
    others = {
        "image": load_image,
        "image size": image_size,
        "packets": read_packets,
        "isolated image": lambda ref: load_image(ref, isolated),
        "isolated video": lambda ref: open_video(ref, limits=isolated),
    }
    return videos | others | by_processor(tiny)


def test_every_entry_goes_through_the_gate(entries, clip, monkeypatch):
    """When the gate says no, nothing gets in by any entry, whatever it is and however it comes."""

    def no(name, fd, allowed, limits):
        raise MediaError(name, "the gate is closed")

    monkeypatch.setattr(media_gate, "_checked", no)
    for ref in (str(clip), clip, clip.read_bytes(), RootedPath(clip.parent, clip.name)):
        for name, entry in entries.items():
            with pytest.raises(MediaError, match="the gate is closed"):
                pytest.fail(f"{name} let it in: {entry(ref)}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_content_makes_an_entry_fail_in_another_way(entries, data):
    """Bytes of any kind give a result or a MediaError, and what the gate refuses no entry takes."""
    starts = st.sampled_from([b"", encoded("JPEG"), encoded("GIF"), encoded("PNG"), b"\0\0\0\x10ftypisom"])
    kinds = st.sampled_from(sorted({b"".join(marks.values()) for _, marks in SIGNATURES}))
    content = data.draw(st.one_of(starts, kinds)) + data.draw(st.binary(max_size=300))
    for name in ("image", "image size", "av", "packets", "processor, image", "processor, video"):
        allowed = IMAGE_KINDS if "image" in name else VIDEO_KINDS
        try:
            open_medium(content, allowed).close()
            refused = False
        except MediaError:
            refused = True
        try:
            entries[name](content)
        except MediaError:
            continue
        assert not refused, name


OPENERS = {
    "av.open": {"utils/container.py"},
    "Image.open": {"utils/image.py", "utils/frame_store.py"},
    "decord.VideoReader": {"utils/video_extra.py"},
    "decoders.VideoDecoder": {"utils/video_extra.py"},
    "backend.VideoStreamAv": set(),
    "detect.open_video": set(),
}
"""What can decode a file -> where it may be called: on what the gate gave, or on bytes of a named format."""


def test_nothing_is_decoded_beside_the_gate():
    package = Path(quicksviewer.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in OPENERS:
                writes = any(isinstance(a, ast.Constant) and a.value == "w" for a in node.args)
                place = str(path.relative_to(package))
                assert writes or place in OPENERS[name], f"{place}:{node.lineno} opens media by itself"
