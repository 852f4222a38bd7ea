"""Decoding in a child: equal frames, and what a child that hangs, crashes or eats memory costs (F12)."""

import gc
import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_files import number_of, write_clip
from PIL import Image
from torch.utils.data import DataLoader

from quicksviewer.data.dataset import BadSamplePolicy, LazySupervisedDataset
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.utils import decode_pool, syscalls
from quicksviewer.utils.data_util import (
    VIDEO_READERS,
    MediaError,
    MediaLimits,
    load_image,
    open_video,
    read_video,
)

LIMIT = 2.0
CHILD = MediaLimits(isolation="process", decode_seconds=LIMIT, decode_memory=2**28)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "good.mp4", gop=5)


@pytest.fixture(autouse=True)
def evil(monkeypatch):
    monkeypatch.setitem(VIDEO_READERS, "evil", "evil_readers:EvilReader")
    monkeypatch.setitem(VIDEO_READERS, "burglar", "evil_readers:BurglarReader")


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No test leaves a child, a zombie, a descriptor or shared memory behind."""
    decode_pool.pool.retire()
    gc.collect()
    before = open_files()
    yield
    decode_pool.pool.retire()
    gc.collect()
    assert children() == []
    assert open_files() == before


def open_files() -> list[str]:
    """What this process has open of media and of children."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    found = sorted(os.readlink(link) for link in links if link.is_symlink())
    return [name for name in found if name.startswith(("/memfd:medium", "socket:")) or "good" in name]


def children() -> list[int]:
    """Processes that were started by this one, zombies too; but for those that multiprocessing keeps."""
    pids = [int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    kept = (b"resource_tracker", b"forkserver")
    return [pid for pid in pids if not any(name in command_of(pid) for name in kept)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def named(clip: Path, name: str) -> Path:
    path = clip.with_name(name)
    if not path.exists():
        path.write_bytes(clip.read_bytes())
    return path


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


def test_a_decoder_has_no_network_no_programs_and_no_files(clip):
    with open_video(clip, "burglar", CHILD) as video:
        worked = set(filter(None, video.probe().codec.split(",")))
        forbidden = set(video._child.given_up)
    assert worked <= {"network", "program", "kill"}
    if os.uname().machine in syscalls.FORBIDDEN:
        assert worked == set() and {"network", "programs", "processes"} <= forbidden


def test_the_child_does_not_import_torch(clip):
    with open_video(clip, limits=CHILD) as video:
        maps = Path(f"/proc/{video._child.process.pid}/maps").read_text()
    assert "/av/" in maps or "av.libs" in maps
    assert "libtorch" not in maps


# In the workers of a data loader


ROWS = [f"good_{number}.mp4" for number in range(12)]
ROWS[1], ROWS[3], ROWS[5] = "hang_frames.mp4", "crash_open.mp4", "eat_frames.mp4"


@pytest.fixture(scope="module")
def rows(tiny, tmp_path_factory):
    """A data set of which three videos make the decoder hang, crash and eat memory."""
    from tiny_world import fresh

    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number, name in enumerate(ROWS):
        write_clip(folder / name, gop=5)
        said = {"data_type": "caption", "video": name, "caption": f"clip {number}"}
        lines.append({"uid": str(number), **said})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, fresh(tiny).processor


def dataset(rows, decoder, ledger):
    folder, processor = rows
    (spec,) = parse_mixture(str(folder / "rows.jsonl"))
    bounds = {"isolation": "process", "decode_seconds": LIMIT, "decode_memory_mib": 256}
    media = processor.with_media(decoder=decoder, fps=4.0, **bounds)
    mixture = Mixture([replace(spec, media_root=str(folder))])
    return LazySupervisedDataset(mixture, media, 400, BadSamplePolicy(max_share=0.9), folder / ledger)


def test_a_run_goes_on_past_them_in_the_same_order(rows):
    """In a forked worker: every place of the run has a row, and the three bad ones stand in the ledger."""
    data = dataset(rows, "evil", "forked.jsonl")
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork")
    seen = list(loader)
    bad = [json.loads(line) for line in (rows[0] / "forked.jsonl").read_text().splitlines()]
    assert sorted(line["uid"] for line in bad) == ["1", "3", "5"]
    honest = dataset(rows, "av", "honest.jsonl")
    stands_in = {bad: data.policy.next_index(bad, 1, len(ROWS)) for bad in (1, 3, 5)}
    assert len(seen) == len(ROWS) and all("good" in ROWS[index] for index in stands_in.values())
    for place, row in enumerate(seen):
        expected = honest.load(stands_in.get(place, place))
        assert row["input_ids"] == expected["input_ids"]
        assert np.array_equal(row["pixel_values"], expected["pixel_values"])


def test_workers_that_are_spawned_decode_too(rows):
    data = dataset(rows, "av", "spawned.jsonl")
    one = [data[index] for index in (0, 1)]
    loader = DataLoader(data, batch_size=None, num_workers=1, sampler=[0, 1], multiprocessing_context="spawn")
    for here, there in zip(one, loader, strict=True):
        assert np.array_equal(here["pixel_values"], there["pixel_values"])
