"""Decoding in a child: equal frames, and what a child that hangs, crashes or eats memory costs (F12)."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from child_checks import CHILD, LIMIT, children, named
from clip_files import number_of, write_clip
from PIL import Image

from quicksviewer.utils import data_util, decode_pool, landlock, syscalls
from quicksviewer.utils.data_util import (
    MediaError,
    image_size,
    in_chunks,
    load_image,
    open_video,
    read_video,
    why_unusable,
)
from quicksviewer.utils.media import DecoderLost

pytestmark = pytest.mark.usefixtures("evil", "nothing_is_left")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "good.mp4", gop=5)


# It gives what the reader gives


def test_frames_and_facts_are_those_of_the_reader_itself(clip):
    times = [0.9, 0.1, 0.1, -1.0, 99.0]
    with open_video(clip) as here, open_video(clip, limits=CHILD) as there:
        assert there.probe() == here.probe()
        for asked in (times, times[:1], []):
            assert np.array_equal(there.frames_at(asked), here.frames_at(asked))
        out = np.zeros((2, 48, 64, 3), np.uint8)
        there.frames_at([0.5, 0.6], out)
        assert np.array_equal(out, here.frames_at([0.5, 0.6]))


def test_frames_outlive_their_reader(clip):
    frames, plan = read_video(clip, 10, 4, limits=CHILD)
    decode_pool.pool.retire()
    again, same_plan = read_video(clip, 10, 4)
    assert np.array_equal(frames, again) and plan == same_plan
    frames[:] = 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_too(tmp_path, kind):
    path = tmp_path / "picture"
    Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB").save(path, kind)
    for source in (path, path.read_bytes()):
        assert load_image(source, CHILD).tobytes() == load_image(source).tobytes()


def test_sizes_of_pictures_too_and_not_here(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    sizes = {}
    for kind in ("PNG", "JPEG", "WEBP"):
        path = tmp_path / kind
        Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB").save(path, kind, exif=exif)
        sizes[path] = image_size(path)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened in this process"))
    for path, size in sizes.items():
        assert image_size(path, CHILD) == image_size(path.read_bytes(), CHILD) == size == (60, 90)
    assert len(children()) == 1


def test_errors_are_those_of_the_reader(clip, tmp_path):
    words = tmp_path / "words.mp4"
    words.write_text("words, no video")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    for asked, source in ((open_video, words), (open_video, tmp_path / "none.mp4"), (load_image, damaged)):
        with pytest.raises(MediaError) as here:
            asked(source)
        with pytest.raises(MediaError) as there:
            asked(source, limits=CHILD)
        assert str(there.value) == str(here.value)
    with open_video(clip, limits=CHILD) as video:
        with pytest.raises(ValueError, match="finite"):
            video.frames_at([float("nan")])
        with pytest.raises(MediaError, match="take .* bytes, the limit"):
            video.frames_at(range(10**7))
    with pytest.raises(MediaError, match="closed"):
        video.frames_at([0.1])


def test_two_media_at_once(clip):
    with open_video(clip, limits=CHILD) as one, open_video(clip, limits=CHILD) as other:
        assert number_of(one.frames_at([0.5])[0]) == number_of(other.frames_at([0.5])[0]) == 15
    assert len(children()) == 2


def test_a_child_is_used_again_and_replaced_in_time(clip, monkeypatch):
    monkeypatch.setattr(decode_pool, "MAX_MEDIA", 3)
    seen = []
    for _ in range(6):
        read_video(clip, 1, 1, limits=CHILD)
        seen.append(children())
    assert seen[0] == seen[1] != seen[3] == seen[4] and seen[2] == seen[5] == []


# What goes wrong costs one medium


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("hang", "took longer than 2 s"),
        ("spin", "took longer than 2 s|took too long"),
        ("crash", r"crashed \(SIGSEGV\)"),
        ("abort", r"crashed \(SIGABRT\)"),
        ("eat", "needs more memory"),
        ("leave", "its decoder ended"),
    ],
)
@pytest.mark.parametrize("moment", ["open", "frames"])
def test_a_decoder_that_misbehaves_is_killed_at_the_limit(clip, deed, reason, moment):
    with open_video(clip, "evil", CHILD):
        (first,) = children()
    path = named(clip, f"{deed}_{moment}.mp4")
    started = time.monotonic()
    with pytest.raises(MediaError, match=reason) as error, open_video(path, "evil", CHILD) as video:
        video.frames_at([0.1])
    assert time.monotonic() - started < LIMIT + 2
    assert error.value.path == str(path)
    assert children() == []
    with open_video(clip, "evil", CHILD) as video:
        assert number_of(video.frames_at([0.5])[0]) == 15
        assert children() != [first]


def test_the_time_of_a_medium_is_that_of_all_its_calls(clip, monkeypatch):
    """One that takes a little in each of many calls."""
    monkeypatch.setattr(data_util, "CHUNK_BYTES", 1)
    path, seen, started = named(clip, "dawdle_frames.mp4"), 0, time.monotonic()
    with open_video(path, "evil", CHILD) as video:
        with pytest.raises(DecoderLost, match=r"took longer than 2 s"):
            for _ in in_chunks(video, [0.1] * 20):
                seen += 1
        assert time.monotonic() - started < LIMIT + 1 and seen in (1, 2)
        with pytest.raises(MediaError, match="closed"):
            video.frames_at([0.1])


def test_time_between_calls_is_not_the_decoders(clip):
    with open_video(clip, limits=replace(CHILD, decode_seconds=0.5)) as video:
        for _ in range(3):
            time.sleep(0.3)
            assert number_of(video.frames_at([0.5])[0]) == 15


def test_the_memory_of_a_medium_is_that_of_all_its_calls(clip):
    path = named(clip, "nibble_frames.mp4")
    with open_video(path, "evil", CHILD) as video, pytest.raises(DecoderLost, match="needs more memory"):
        for _ in range(8):  # 32 MiB each of 256
            video.frames_at([0.1])
    assert children() == []


def test_what_media_leave_behind_is_not_forgiven_and_not_paid_by_the_next(clip):
    """A leak: the child that has it is replaced before another medium suffers from it."""
    path, seen = named(clip, "nibble_open.mp4"), []
    for _ in range(12):
        with open_video(path, "evil", CHILD) as video:
            assert number_of(video.frames_at([0.5])[0]) == 15
            seen.append(video._child.process.pid)
    changes = sum(one != other for one, other in itertools.pairwise(seen))
    assert 2 <= changes <= 6


def test_ordinary_media_wear_no_child_out(clip):
    seen = set()
    for _ in range(20):
        with open_video(clip, limits=CHILD) as video:
            video.frames_at([0.1, 0.9])
            seen.add(video._child.process.pid)
    assert len(seen) == 1


def test_a_bug_is_no_bad_medium(clip):
    with pytest.raises(RuntimeError, match=r"the decoding child failed(.|\n)*KeyError: 'a bug'"):
        open_video(named(clip, "babble_open.mp4"), "evil", CHILD)


def test_a_child_that_was_killed_while_idle_is_replaced(clip):
    read_video(clip, 1, 1, limits=CHILD)
    os.kill(children()[0], signal.SIGKILL)
    time.sleep(0.2)
    assert read_video(clip, 1, 1, limits=CHILD)[0].shape == (1, 48, 64, 3)


def test_a_child_ends_with_its_parent_even_while_it_hangs(clip):
    """A parent that is killed cannot kill: the child has an alarm of its own."""
    path, (ours, theirs) = named(clip, "hang_open.mp4"), multiprocessing.Pipe()

    def parent():
        threading.Timer(0.7, lambda: (theirs.send(children()), os.kill(os.getpid(), signal.SIGKILL))).start()
        open_video(path, "evil", CHILD)

    process = multiprocessing.get_context("fork").Process(target=parent)
    process.start()
    (orphan,) = ours.recv()
    process.join()
    deadline = time.monotonic() + LIMIT + 3
    while is_running(orphan) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(orphan)
    ours.close(), theirs.close(), process.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


OF_FILES = {"read", "list", "environment of another"}
"""What Landlock alone forbids."""


def test_a_decoder_has_no_network_no_programs_and_no_files(clip, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    victim = clip.with_name("victim")
    victim.write_text("mine")
    untouched = victim.stat().st_mode, victim.stat().st_mtime_ns, victim.stat().st_nlink
    with open_video(clip, "burglar", CHILD) as video:
        worked = set(filter(None, video.probe().codec.split(",")))
        forbidden = set(video._child.given_up)
    assert "environment" not in worked
    if os.uname().machine in syscalls.NUMBERS:
        assert worked <= OF_FILES and set(syscalls.REFUSED) <= forbidden
        after = victim.stat()
        assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == untouched
        assert victim.read_text() == "mine"
        assert not list(clip.parent.glob("victim-*"))
    if landlock.version():
        assert not worked & OF_FILES and "reading files" in forbidden


def test_a_kernel_without_landlock_is_told_of_and_reads_go_on(monkeypatch):
    monkeypatch.setattr(landlock, "_call", lambda *_: -1)
    assert landlock.version() == 0 and not landlock.read_only(["/usr"])


def test_a_child_has_little_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("LANG", "C.UTF-8")
    kept = decode_pool.environment()
    assert kept["LANG"] == "C.UTF-8" and kept["OMP_NUM_THREADS"] == "1"
    assert set(kept) <= {*decode_pool.KEPT, *decode_pool.OWN_THREADS, "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}


def test_a_reader_that_opens_its_file_by_a_path_has_a_child_of_its_own(clip):
    """A child that has given up reading files is of no use to it; neither waits for a start of the other."""
    if reason := why_unusable("decord"):
        pytest.skip(reason)
    pids = {"av": set(), "decord": set()}
    for decoder in ["av", "decord"] * 3:
        with open_video(clip, decoder, CHILD) as video:
            assert number_of(video.frames_at([0.5])[0]) == 15
            pids[decoder].add(video._child.process.pid)
    assert landlock.version() == 0 or len(pids["av"] | pids["decord"]) <= 3


def test_the_child_does_not_import_torch(clip):
    with open_video(clip, limits=CHILD) as video:
        maps = Path(f"/proc/{video._child.process.pid}/maps").read_text()
    assert "/av/" in maps or "av.libs" in maps
    assert "libtorch" not in maps
