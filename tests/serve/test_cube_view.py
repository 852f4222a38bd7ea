"""The HTML of a video: every frame once, in its cube; widths by time and by tokens; nothing unescaped."""

import base64
import io
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from quicksviewer.serve.compare import Cutting
from quicksviewer.serve.cube_view import (
    SIDE,
    SeenVideo,
    comparison,
    figures,
    frame_pictures,
    notice,
    strip,
)
from quicksviewer.serve.stages import Times

PIXELS = (torch.arange(5)[:, None, None, None] * 50).expand(5, 3, 8, 8).to(torch.uint8)
VIDEO = SeenVideo(
    times=[0.5, 1.5, 2.5, 3.5, 4.5],
    spans=[(0, 2), (2, 3), (3, 5)],
    seconds=5.0,
    tokens=30,
    tokens_per_cube=4,
    patches=36,
    has_thumbnail=True,
)


def test_every_frame_is_drawn_once_in_its_cube():
    html = strip(PIXELS, VIDEO)
    cubes = html.split('<figure class="qv-cube"')[1:]
    assert [len(re.findall("<img", cube)) for cube in cubes] == [2, 1, 2]
    assert [int(first) for first in re.findall(r'data-first-frame="(\d+)"', html)] == [0, 2, 3]
    assert all(cube.count("qv-open") == 1 for cube in cubes)
    shades = [
        Image.open(io.BytesIO(base64.b64decode(data))).convert("L").getpixel((SIDE // 2, SIDE // 2))
        for data in re.findall(r'base64,([^"]+)"', html)
    ]
    assert shades == pytest.approx([0, 50, 100, 150, 200], abs=2)


def test_the_line_of_time_is_as_long_as_the_cubes():
    line = strip(PIXELS, VIDEO).split("<span>time</span>")[1].split("</div>")[0]
    assert [float(width) for width in re.findall(r"flex:([\d.]+)", line)] == [2.0, 1.0, 1.5]
    assert "cube 3: 3.5 to 5.0 s" in line


@pytest.mark.parametrize("has_thumbnail", [True, False])
def test_the_line_of_tokens_has_a_block_for_each_cube(has_thumbnail):
    html = strip(PIXELS, replace(VIDEO, has_thumbnail=has_thumbnail))
    line = html.split("<span>tokens</span>")[1].split("</div>")[0]
    assert line.count("4 tokens") == 3
    assert ("qv-thumbnail" in line) == ("thumbnail of 4" in html) == has_thumbnail


def test_figures_and_times():
    html = figures(VIDEO, Times({"tower": 2.0, "decode": 0.5, "first token": 0.004}))
    values = dict(re.findall(r"<span>([^<]+)</span><b>([^<]+)</b>", html))
    assert values == {"frames": "5", "cubes": "3", "tokens": "30", "tokens / second": "6.0"}
    assert "6 times fewer" in html  # 5 frames of 36 patches in 30 tokens
    stages = re.findall(r"<li><span>([^<]+)</span>.*?width:([\d.]+)%.*?<b>([^<]+)</b>", html)
    assert stages == [
        ("decode", "25.0", "500 ms"),
        ("tower", "100.0", "2.00 s"),
        ("first token", "1.0", "4 ms"),
    ]


def test_a_comparison_shows_cuts_measures_and_answers():
    cuttings = [
        Cutting("uniform", [2, 3], 1.5, "<b>red</b>"),
        Cutting("opt<i>mal", [3, 4], 1.0, None, "<why>"),
    ]
    html = comparison(PIXELS, VIDEO.times, cuttings)
    bars = html.split('class="qv-row qv-blocks"')[1:]
    widths = [[int(w) for w in re.findall(r"flex:(\d+)", bar.split("</div>")[0])] for bar in bars]
    assert widths == [[2, 1, 2], [3, 1, 1]]
    assert html.count("<blockquote>") == 1 and "&lt;b&gt;red&lt;/b&gt;" in html
    assert "<b>1.50</b>" in html and "<b>100%</b> of cuts agree" in html
    assert html.count("<p>") == 1 and "<p>&lt;why&gt;</p>" in html.split("opt&lt;i&gt;mal")[-1]
    assert "opt&lt;i&gt;mal" in html and "<i>mal" not in html


def test_a_notice_is_escaped_and_an_alert():
    assert notice("<script>") == '<div class="qv-notice" role="alert">&lt;script&gt;</div>'


@pytest.mark.parametrize("size", [4, SIDE, 300])
def test_pictures_have_one_size(size):
    (url,) = frame_pictures(torch.full((1, 3, size, size), 90, dtype=torch.uint8))
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size == (SIDE, SIDE)


def test_a_long_time_is_a_clock():
    assert "of 12:05 of video" in figures(replace(VIDEO, seconds=725.0), Times())
