import random
import sys

import numpy as np
import pytest
from clip_files import decode_all, number_of, numbered_frame, shifted, without_showing, write_clip

from quicksviewer.utils import decode_pool, video_av
from quicksviewer.utils.data_util import (
    VIDEO_READERS,
    MediaError,
    MediaLimits,
    VideoInfo,
    open_video,
    read_video,
    why_unusable,
)
from quicksviewer.utils.packets import read_packets

FPS = 30
LAYERS = {
    "error-resilient": "1",
    "ts-parameters": "ts_number_layers=3:ts_target_bitrate=60,80,100:ts_rate_decimator=4,2,1:"
    "ts_periodicity=4:ts_layer_id=0,2,1,2:ts_layering_mode=3",
}
"""Of VP8 and VP9: frames of the upper layers are referred to by none."""
CLIPS = {
    "one_group.mp4": {},
    "groups_of_5.mp4": {"gop": 5},
    "open_groups.mp4": {"options": {"x264-params": "keyint=6:open-gop=1:bframes=3:scenecut=0"}},
    "late_start.mp4": {"first": 60, "gop": 5},
    "index_first.mp4": {"muxing": {"movflags": "faststart"}},
    "fragments.mp4": {"gop": 5, "muxing": {"movflags": "frag_keyframe+empty_moov"}},
    "mpeg4.mp4": {"codec": "mpeg4", "gop": 5},
    "h264.mov": {"gop": 5},
    "h264.mkv": {"gop": 5},
    "late_start.mkv": {"first": 60, "gop": 5},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 5, "options": {"deadline": "realtime", "cpu-used": "8"}},
    "live.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}, "muxing": {"live": "1"}},
    "pyramid.mp4": {"options": {"x264-params": "bframes=7:b-pyramid=normal:b-adapt=0:scenecut=0"}},
    "refreshed.mkv": {"options": {"x264-params": "keyint=10:intra-refresh=1:bframes=2:b-adapt=0"}},
    "interlaced.mp4": {"options": {"x264-params": "interlaced=1:bframes=3:b-adapt=0"}},
    "every_frame.mp4": {"gop": 9, "muxing": {"movflags": "frag_every_frame+empty_moov+default_base_moof"}},
    "hevc.mkv": {"codec": "libx265", "gop": 9, "options": {"x265-params": "bframes=4:log-level=none"}},
    "mpeg4_b.mkv": {"codec": "mpeg4", "gop": 9, "options": {"bf": "2"}},
    "fields.mkv": {"codec": "mpeg2video", "gop": 9, "options": {"bf": "2", "flags": "+ildct+ilme"}},
    "hidden.webm": {"codec": "libvpx-vp9", "options": {"lag-in-frames": "25", "cpu-used": "5"}},
    "layers.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "lag-in-frames": "0", **LAYERS}},
    "b_frames.avi": {"gop": 5, "options": {"bf": "3"}},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 5},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {name: write_clip(folder / name, **how) for name, how in CLIPS.items()}


def middles(numbers, fps=FPS):
    return [(number + 0.5) / fps for number in numbers]


# Exactness


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("min_jump", [1, 12])
def test_every_frame_is_that_of_a_full_decode(clips, name, min_jump, monkeypatch):
    monkeypatch.setattr(video_av, "MIN_JUMP_FRAMES", min_jump)
    golden = decode_all(clips[name])
    assert [number_of(frame) for frame in golden] == list(range(30))
    picker = random.Random(0)
    with open_video(clips[name]) as video:
        assert np.array_equal(video.frames_at(middles(range(30))), golden)
        for size in (1, 1, 1, 2, 3, 5, 40):
            numbers = picker.choices(range(30), k=size)
            assert np.array_equal(video.frames_at(middles(numbers)), golden[numbers]), numbers


@pytest.mark.parametrize("name", CLIPS)
def test_probe_tells_the_facts(clips, name):
    with open_video(clips[name]) as video:
        info = video.probe()
    assert (info.width, info.height, info.num_frames) == (64, 48, 30)
    assert info.duration == pytest.approx(1.0, abs=0.04)
    assert info.fps == pytest.approx(30, rel=0.05)
    assert info.path == str(clips[name])


def test_a_frame_begins_at_its_own_time_and_lasts_until_the_next(clips):
    with open_video(clips["groups_of_5.mp4"]) as video:
        exact = video.frames_at([number / FPS for number in range(30)])
        before = video.frames_at([number / FPS - 1e-4 for number in range(1, 30)])
        outside = video.frames_at([-3.0, 1e-9, 1.0, 1e6])
    assert [number_of(f) for f in exact] == list(range(30))
    assert [number_of(f) for f in before] == list(range(29))
    assert [number_of(f) for f in outside] == [0, 0, 29, 29]


@pytest.mark.parametrize("name", ["irregular.mp4", "irregular.mkv"])
@pytest.mark.parametrize("gop", [4, 250])
def test_irregular_frame_times_are_kept(tmp_path, name, gop):
    millis = [0, 10, 500, 510, 520, 1900, 1933, 4000, 4001, 4100, 7000, 7040]
    path = write_clip(tmp_path / name, millis=millis, gop=gop)
    times = sorted([m / 1000 for m in millis] + [m / 1000 + 0.0005 for m in millis] + [1.0, 3.999, 6.5])
    expected = [sum(m <= t * 1000 + 1e-6 for m in millis) - 1 for t in times]
    with open_video(path) as video:
        assert [number_of(f) for f in video.frames_at(times)] == expected
        assert [number_of(f) for f in video.frames_at(times[::-1])] == expected[::-1]
        assert 7.0 <= video.probe().duration <= 7.2


def test_asking_in_parts_gives_the_same_frames(clips):
    with open_video(clips["one_group.mp4"]) as video:
        whole = video.frames_at(middles(range(0, 30, 3)))
        parts = [video.frames_at(middles([number])) for number in range(0, 30, 3)]
        assert video.frames_at([]).shape == (0, 48, 64, 3)
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    "asked",
    [range(30), [10, 11, 13, 20, 29], [29, 10, 13], range(0, 30, 7)],
    ids=["all", "some", "back", "few"],
)
def test_a_packet_without_a_picture_leaves_the_one_before_on_the_screen(clips, tmp_path, asked):
    """VP8's frames that are referred to and never shown."""
    hidden = {10, 20, 21, 29}
    path = without_showing(clips["layers.webm"], tmp_path / "hidden.webm", hidden)
    expected = [max(n for n in range(number + 1) if n not in hidden) for number in asked]
    with open_video(path) as video:
        for _ in range(2):
            assert [number_of(frame) for frame in video.frames_at(middles(asked))] == expected


def test_packets_without_pictures_for_more_than_a_second_are_damage(tmp_path):
    options = {"deadline": "realtime", "lag-in-frames": "0"}
    path = write_clip(tmp_path / "whole.webm", count=90, codec="libvpx", options=options)
    path = without_showing(path, tmp_path / "hidden.webm", set(range(20, 60)))
    with open_video(path) as video:
        assert number_of(video.frames_at(middles([19]))[0]) == 19
        for _ in range(2):
            with pytest.raises(MediaError, match=r"damaged: nothing can be decoded from 0\.67 s on"):
                video.frames_at(middles([55]))
        assert number_of(video.frames_at(middles([70]))[0]) == 70


def test_a_clip_that_begins_amid_a_group_shows_what_its_edit_list_says(clips, tmp_path):
    """As `ffmpeg -ss 0.4 -c copy` cuts: packets before the start are there and not shown."""
    path = shifted(clips["open_groups.mp4"], tmp_path / "edited.mp4", by=13)
    golden = decode_all(path)
    assert [number_of(frame) for frame in golden] == list(range(13, 30))
    for asked in (range(17), [3, 16, 9], range(0, 17, 5)):
        with open_video(path) as video:
            assert np.array_equal(video.frames_at(middles(asked)), golden[list(asked)])


# Economy


def test_frames_are_decoded_once_and_in_order(clips):
    with open_video(clips["one_group.mp4"]) as video:
        video.frames_at(middles([25, 3, 3, 14, 25]))
        video.frames_at(middles([26, 27, 29]))
        assert video.decoded <= 30


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_no_more_is_decoded_than_what_leads_to_the_frames(tmp_path, codec):
    options = {"x264-params": "scenecut=0"} if codec == "libx264" else {}
    path = write_clip(tmp_path / "long.mkv", count=240, gop=30, codec=codec, options=options)
    wanted = range(5, 240, 30)
    keys = np.flatnonzero(read_packets(path).is_key)
    cover = sum(number - keys[keys <= number].max() + 1 for number in wanted)
    with open_video(path) as video:
        opened = video.decoded
        assert [number_of(frame) for frame in video.frames_at(middles(wanted))] == [n % 256 for n in wanted]
        on_the_way = 2 * len(wanted)  # in flight between the decoder's threads when it jumps
        assert video.decoded - opened <= cover + on_the_way


def test_frames_that_were_left_out_can_be_asked_for_later(clips):
    golden = decode_all(clips["one_group.mp4"])
    with open_video(clips["one_group.mp4"]) as video:
        video.frames_at(middles([20, 28]))
        assert 30 - video.decoded > 3  # most between were not decoded
        for number in (*range(20, 29), 21, 3, 22):
            assert np.array_equal(video.frames_at(middles([number])), golden[[number]])


def test_gaps_are_jumped_over_where_key_frames_allow_it(tmp_path):
    path = write_clip(tmp_path / "long.mp4", count=240, gop=10, options={"bf": "0"})
    with open_video(path) as video:
        frames = video.frames_at(middles([5, 120, 235]))
        assert [number_of(f) for f in frames] == [5, 120, 235]
        so_far = video.decoded
        assert so_far < 30
        assert number_of(video.frames_at(middles([61]))[0]) == 61  # back, without starting all over
        assert video.decoded - so_far < 8


# Orientation


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path, suffix, degrees):
    path = write_clip(tmp_path / f"turned.{suffix}", count=3, rotation=degrees)
    golden = np.rot90(decode_all(path), degrees // 90, axes=(1, 2))  # counter-clockwise, as the file says
    with open_video(path) as video:
        assert np.array_equal(video.frames_at(middles([0, 1, 2])), golden)
        assert (video.probe().height, video.probe().width) == golden.shape[1:3]


@pytest.mark.parametrize(
    ("matrix", "undo"),
    [
        ((1, 0, 0, 1), lambda a: a),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
        ((0, -1, 1, 0), lambda a: np.rot90(a, 1)),
    ],
)
def test_mirrors_and_quarter_turns(matrix, undo):
    frame = numbered_frame(77)
    assert np.array_equal(video_av._upright(frame, matrix), undo(frame))


# The door


def test_read_video_returns_frames_and_their_plan(clips):
    frames, plan = read_video(clips["one_group.mp4"], fps=10, max_frames=4, start=0.2, end=0.8)
    assert plan.times == pytest.approx([0.275, 0.425, 0.575, 0.725])
    assert [number_of(frame) for frame in frames] == [8, 12, 17, 21]


def test_an_unknown_decoder_is_named(clips):
    with pytest.raises(ValueError, match=r"decoder 'dekord'.*decord"):
        open_video(clips["one_group.mp4"], decoder="dekord")


@pytest.mark.parametrize("decoder", sorted(VIDEO_READERS))
@pytest.mark.parametrize("name", ["one_group.mp4", "late_start.mp4", "h264.mkv", "mpeg4.mp4"])
def test_all_decoders_agree(clips, decoder, name):
    if reason := why_unusable(decoder):
        pytest.skip(reason)
    times = middles([0, 29, 13, 13, 7]) + [-1.0, 0.5, 99.0]
    with open_video(clips[name]) as ours, open_video(clips[name], decoder) as theirs:
        assert np.array_equal(ours.frames_at(times), theirs.frames_at(times))
        assert theirs.probe().duration == pytest.approx(ours.probe().duration, abs=0.01)


def test_a_decoder_that_is_not_installed_names_its_extra(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r"quicksviewer\[video\]"):
        open_video(clips["one_group.mp4"], "decord")


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_decoder_that_does_not_load_is_no_bad_video(clips, tmp_path, monkeypatch, isolation):
    """torchcodec without ffmpeg's libraries raises RuntimeError as it is imported."""
    package = tmp_path / "torchcodec"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "decoders.py").write_text("raise RuntimeError('Could not load libtorchcodec.\\nMuch more.')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    decode_pool.pool.retire()  # a child knows the path of modules that it was started with
    wanted = r"does not load: Could not load libtorchcodec\. \(torchcodec needs the shared libraries"
    with pytest.raises(ImportError, match=wanted):
        open_video(clips["one_group.mp4"], "torchcodec", MediaLimits(isolation=isolation))
    assert "Could not load" in why_unusable("torchcodec") and why_unusable("av") is None
    decode_pool.pool.retire()


def test_a_closed_reader_says_so(clips):
    with open_video(clips["one_group.mp4"]) as video:
        pass
    video.close()
    with pytest.raises(MediaError, match="closed"):
        video.frames_at([0.1])


def test_times_must_be_numbers(clips):
    with open_video(clips["one_group.mp4"]) as video, pytest.raises(ValueError, match="finite"):
        video.frames_at([0.1, float("nan")])


@pytest.mark.parametrize("wrong", [{"duration": 0}, {"fps": float("inf")}, {"num_frames": 0}, {"width": -1}])
def test_info_refuses_nonsense(wrong):
    facts = {"path": "a.mp4", "duration": 1.0, "num_frames": 3, "fps": 3.0, "width": 4, "height": 4}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VideoInfo(**{**facts, **wrong}, codec="h264")
