"""The gate: which content, paths and sizes pass, and that nothing enters beside it (Sec5, Sec6, Sec9)."""

import ast
import base64
import io
import json
import os
import socket
import struct
import time
import zlib
from pathlib import Path

import pytest
from clip_files import write_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

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

ALL_KINDS = (*VIDEO_KINDS, *IMAGE_KINDS)
AT_ONCE = 1.0
"""Seconds in which a refusal must come; nearly all take under a millisecond."""
GROWTH_KIB = 32 * 1024


def refuse(work, *reasons: str) -> str:
    """The reason for which it is refused: at once, and without taking memory for what it claims to be."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, started = memory_kib("VmRSS"), time.monotonic()
    with pytest.raises(MediaError, match="|".join(reasons) or None) as error:
        work()
    assert time.monotonic() - started < AT_ONCE
    assert memory_kib("VmHWM") - before < GROWTH_KIB
    return error.value.reason


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def png(width: int, height: int, pixels: bytes = b"", *chunks: bytes, bits: int = 8) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    pieces = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(pixels, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def encoded(kind: str, size=(8, 8), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(buffer, kind, **options)
    return buffer.getvalue()


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
    refuse(lambda: read_packets(path), f"is coded in {codec}")


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


# Paths (Sec9)


@pytest.fixture
def world(tmp_path, clip):
    """A media root with a film, and a secret film beside it: (root, secret)."""
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep/a.mp4").write_bytes(clip.read_bytes())
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip.read_bytes())
    (tmp_path / "root_of_others").mkdir()
    (tmp_path / "root_of_others/a.mp4").write_bytes(clip.read_bytes())
    (root / "out").symlink_to(tmp_path)
    (root / "out.mp4").symlink_to("../secret.mp4")
    (root / "absolute.mp4").symlink_to(secret)
    (root / "twice.mp4").symlink_to("out.mp4")
    (root / "loop.mp4").symlink_to("loop.mp4")
    (root / "inside.mp4").symlink_to("deep/a.mp4")
    os.link(secret, root / "hard.mp4")
    os.mkfifo(root / "pipe.mp4")
    return root, secret


ESCAPES = {
    "up": ("../secret.mp4", "'..'"),
    "up and down": ("deep/../../root/deep/a.mp4", "'..'"),
    "up inside": ("deep/../deep/a.mp4", "'..'"),
    "absolute": ("{secret}", "leads out of its media root"),
    "a neighbour with a longer name": ("{root}_of_others/a.mp4", "leads out"),
    "link to a folder": ("out/secret.mp4", "leads out"),
    "link to a file": ("out.mp4", "leads out"),
    "absolute link": ("absolute.mp4", "leads out"),
    "link to a link": ("twice.mp4", "leads out"),
    "endless link": ("loop.mp4", "too many levels|symbolic links"),
    "hard link": ("hard.mp4", "2 names"),
    "pipe": ("pipe.mp4", "not a regular file"),
    "folder": ("deep", "is a directory"),
    "root": ("", "is a directory"),
    "proc": ("/proc/self/environ", "not a stored file"),
    "descriptor": ("/proc/self/fd/0", "not a stored file"),
    "device": ("/dev/zero", "leads out"),
    "NUL": ("deep/a.mp4\0.png", "NUL"),
    "lone surrogate": ("\ud800.mp4", "no name of a file|no such file"),
    "dots that look alike": ("\u2024\u2024/secret.mp4", "no such file"),
    "full-width slash": ("..\uff0fsecret.mp4", "no such file"),
    "backslash": ("..\\secret.mp4", "no such file"),
    "percent": ("%2e%2e/secret.mp4", "no such file"),
    "file:": ("file:{secret}", "starts an address"),
    "file://": ("file://{secret}", "starts an address"),
    "concat:": ("concat:{secret}|{secret}", "starts an address"),
    "subfile,,": ("subfile,,start,0,end,9,,:{secret}", "no such file"),
    "http:": ("http://127.0.0.1:9/a.mp4", "starts an address"),
    "HTTPS:": ("HTTPS://127.0.0.1:9/a.mp4", "starts an address"),
    "pipe:": ("pipe:0", "starts an address"),
    "fd:": ("fd:", "starts an address"),
    "tilde": ("~/secret.mp4", "no such file"),
    "variable": ("$HOME/secret.mp4", "no such file"),
    "too long": ("a" * 5000, "name too long"),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_a_row_cannot_leave_its_root(world, case):
    root, secret = world
    path, reason = ESCAPES[case]
    path = path.format(root=root, secret=secret)
    refuse(lambda: open_medium(RootedPath(root, path), ALL_KINDS), reason)
    refuse(lambda: open_medium(path, ALL_KINDS, root=root), reason)


@pytest.mark.parametrize("path", ["deep/a.mp4", "./deep//a.mp4", "inside.mp4", "{root}/deep/a.mp4"])
def test_what_lies_in_the_root_is_found(world, path, clip):
    root, _ = world
    path = path.format(root=root)
    for ref in (RootedPath(root, path), RootedPath(f"{root}/", path)):
        with open_medium(ref, VIDEO_KINDS) as medium:
            assert medium.reader().read() == clip.read_bytes()
            assert medium.name == str(ref) and os.path.samefile(str(ref), root / path)


def test_a_root_may_be_a_link_and_hard_links_may_be_allowed(world):
    root, _ = world
    link = root.with_name("link")
    link.symlink_to(root)
    open_medium(RootedPath(link, "deep/a.mp4"), VIDEO_KINDS).close()
    open_medium(RootedPath(root, "hard.mp4"), VIDEO_KINDS, MediaLimits(max_links=2)).close()


def test_a_link_that_is_put_there_meanwhile_is_not_followed(world, monkeypatch):
    root, secret = world
    resolve = os.path.realpath

    def and_swap(path, **how):
        real = resolve(path, **how)
        if real.endswith("a.mp4"):
            (root / "deep/a.mp4").unlink(missing_ok=True)
            (root / "deep/a.mp4").symlink_to(secret)
        return real

    monkeypatch.setattr(media_gate.os.path, "realpath", and_swap)
    refuse(lambda: open_medium(RootedPath(root, "deep/a.mp4"), VIDEO_KINDS), "not a regular file")


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/stdin", "/proc/self/exe", "/sys/kernel/notes", "file:a.mp4"]
)
def test_what_a_user_types_may_lie_anywhere_but_must_be_stored(path):
    refuse(
        lambda: open_medium(path, ALL_KINDS), "not a stored file", "not a regular file", "starts an address"
    )


def test_a_typed_path_may_go_up_and_follow_links(world, monkeypatch):
    root, _ = world
    monkeypatch.chdir(root)
    for path in ("../secret.mp4", "out.mp4", "hard.mp4", "./deep/../deep/a.mp4"):
        open_medium(path, VIDEO_KINDS).close()


def test_a_rooted_path_is_a_text_that_survives_workers():
    import pickle

    path = pickle.loads(pickle.dumps(RootedPath("media", "a/b.mp4")))
    assert (path, path.root, path.path) == ("media/a/b.mp4", "media", "a/b.mp4")
    url = RootedPath("media", "data:image/png;base64," + base64.b64encode(encoded("PNG")).decode())
    assert load_image(url).size == (8, 8)


def test_a_refused_file_is_closed(world):
    root, _ = world
    before = len(os.listdir("/proc/self/fd"))
    for path, _ in ESCAPES.values():
        with pytest.raises(MediaError):
            open_medium(RootedPath(root, path.format(root=root, secret=root)), ALL_KINDS)
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
    "av.open": {"utils/container.py", "preprocess/split_activitynet.py"},
    "Image.open": {"utils/image.py", "utils/frame_store.py", "preprocess/utils.py"},
    "decord.VideoReader": {"utils/video_extra.py"},
    "decoders.VideoDecoder": {"utils/video_extra.py"},
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
