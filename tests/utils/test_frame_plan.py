import itertools
import math

import pytest

from quicksviewer.utils.data_util import FramePlan, VideoInfo, plan_frames


def info(duration: float) -> VideoInfo:
    return VideoInfo("clip.mp4", duration, max(1, round(duration * 30)), 30.0, 64, 48, "h264")


@pytest.mark.parametrize(
    ("duration", "fps", "most", "times"),
    [
        (3.0, 1.0, 10, [0.5, 1.5, 2.5]),
        (3.4, 1.0, 10, [0.5, 1.5, 2.5]),
        (3.6, 1.0, 10, [0.5, 1.5, 2.5, 3.5]),
        (1.5, 1.0, 10, [0.5]),
        (0.3, 1.0, 10, [0.15]),
        (0.5, 1.0, 10, [0.25]),
        (10.0, 0.3, 10, [0.5 / 0.3, 1.5 / 0.3, 2.5 / 0.3]),
        (8.0, 1.0, 4, [1.0, 3.0, 5.0, 7.0]),
        (8.0, 1.0, 1, [4.0]),
        (1.0, 2, 2, [0.25, 0.75]),
    ],
)
def test_plans_by_hand(duration, fps, most, times):
    assert plan_frames(info(duration), fps, most).times == pytest.approx(times)


def test_a_clip_has_a_grid_of_its_own():
    plan = plan_frames(info(60.0), 1.0, 100, start=10.25, end=13.25)
    assert plan.times == pytest.approx([10.75, 11.75, 12.75])
    assert (plan.start, plan.end, plan.fps, plan.max_frames) == (10.25, 13.25, 1.0, 100)


def test_an_end_behind_the_video_is_the_end_of_the_video():
    assert plan_frames(info(5.0), 1.0, 9, end=50) == plan_frames(info(5.0), 1.0, 9)


DURATIONS = (1 / 30, 0.4, 1.0, 1.001, 2.5, 9.99, 59.94, 3600.0)
RATES = (0.01, 0.3, 1.0, 2, 23.976, 29.97, 60)
MOST = (1, 2, 7, 64, 4096)
PARTS = ((None, None), (0.0, 0.5), (0.31, None), (0.9, 7.0))


@pytest.mark.parametrize(("duration", "fps"), itertools.product(DURATIONS, RATES))
def test_what_holds_for_every_plan(duration, fps):
    for most, (start, end) in itertools.product(MOST, PARTS):
        start = None if start is None else start * duration
        end = None if end is None else end * duration
        plan = plan_frames(info(duration), fps, most, start, end)
        length = plan.end - plan.start
        gaps = [b - a for a, b in itertools.pairwise(plan.times)]
        assert 1 <= len(plan.times) <= most
        assert 0 <= plan.start <= plan.times[0] and plan.times[-1] < plan.end <= duration
        assert all(gap == pytest.approx(gaps[0]) for gap in gaps)
        if length * fps >= most + 1:
            assert len(plan.times) == most
            assert plan.times[0] - plan.start == pytest.approx(plan.end - plan.times[-1], abs=1e-9)
        elif len(plan.times) > 1 and len(plan.times) < most:
            assert gaps[0] == pytest.approx(1 / fps)
            assert abs(len(plan.times) - length * fps) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fps": 0}, "fps must be a positive number, got 0"),
        ({"fps": -2.5}, "got -2.5"),
        ({"fps": math.nan}, "got nan"),
        ({"fps": math.inf}, "got inf"),
        ({"max_frames": 0}, "max_frames must be at least 1, got 0"),
        ({"start": 4, "end": 4}, r"start=4.0 must come before end=4.0"),
        ({"start": 5, "end": 2}, r"start=5.0 must come before end=2.0"),
        ({"start": 10.0}, r"start=10.0 is not inside the 10.0 s"),
        ({"start": 12, "end": 13}, "start=12"),
        ({"start": -1}, "start=-1"),
        ({"end": 0}, "end=0"),
        ({"start": math.nan}, "start=nan"),
        ({"end": math.nan}, "end=nan"),
    ],
)
def test_nonsense_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        plan_frames(info(10.0), **{"fps": 1.0, "max_frames": 8, **wrong})


@pytest.mark.parametrize("times", [(), (1.0, 1.0), (2.0, 1.0), (-1.0,), (4.0,), (0.0, 1.0, 2.0, 3.0)])
def test_a_plan_refuses_times_that_break_its_promise(times):
    with pytest.raises(ValueError, match="times"):
        FramePlan(times, fps=1.0, max_frames=3, start=0.0, end=4.0)
