"""The picture of a video: cubes cover the frames, and every frame is on it."""

import numpy as np
import pytest
import torch
from PIL import Image

from quicksviewer.serve.strip import BAR, CELL, COLOURS, GAP, PER_ROW, cube_spans, draw_strip, save_strip


def frames(count: int) -> torch.Tensor:
    """Frames of one colour each, all different."""
    shades = torch.arange(count, dtype=torch.uint8) * 4 + 40
    return torch.stack([shades, 255 - shades, shades // 2], dim=1)[:, :, None, None].expand(-1, 3, 8, 8)


@pytest.mark.parametrize(
    ("cubes", "spans"),
    [
        ([0], [(0, 1)]),
        ([0, 0, 0], [(0, 3)]),
        ([0, 1, 2], [(0, 1), (1, 2), (2, 3)]),
        ([0, 0, 1, 2, 2, 2], [(0, 2), (2, 3), (3, 6)]),
        ([4, 4, 5], [(0, 2), (2, 3)]),
    ],
)
def test_spans_of_cubes(cubes, spans):
    assert cube_spans(torch.tensor(cubes)) == spans


def test_spans_cover_the_frames_once():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        cube_of_frame = torch.randint(0, 2, (30,), generator=generator).cumsum(0)
        spans = cube_spans(cube_of_frame)
        assert [i for start, stop in spans for i in range(start, stop)] == list(range(30))
        assert all(len(cube_of_frame[start:stop].unique()) == 1 for start, stop in spans)
        assert len(spans) == len(cube_of_frame.unique())


@pytest.mark.parametrize("lines", [[], ["Which is first?  red", "Größe?  東京"]])
@pytest.mark.parametrize("count", [1, 5, PER_ROW, PER_ROW + 1, 3 * PER_ROW])
def test_the_size_is_that_of_the_rows_and_lines(count, lines):
    sheet = draw_strip(frames(count), torch.arange(count) + 0.5, [(0, count)], lines)
    rows, columns = -(-count // PER_ROW), min(count, PER_ROW)
    height = rows * (CELL + BAR + 2 * GAP) + 2 * GAP + 20 * len(lines)
    assert sheet.size == (max(columns * (CELL + GAP) + GAP, 640), height)


def test_every_frame_is_in_its_place_below_the_bar_of_its_cube():
    count = PER_ROW + 4
    spans = [(0, 3), (3, 4), (4, PER_ROW + 2), (PER_ROW + 2, count)]  # one goes over the end of the row
    pixels = frames(count)
    sheet = np.asarray(draw_strip(pixels, torch.arange(count) + 0.5, spans, []))
    for cube, span in enumerate(spans):
        for index in range(*span):
            x = GAP + index % PER_ROW * (CELL + GAP)
            y = GAP + index // PER_ROW * (CELL + BAR + 2 * GAP)
            cell = sheet[y + BAR : y + BAR + CELL, x : x + CELL]
            assert (cell == pixels[index, :, 0, 0].numpy()).all()
            assert tuple(sheet[y + 1, x + CELL - 2]) == COLOURS[cube]
            between = tuple(sheet[y + 1, x - 1])
            assert (between == COLOURS[cube]) == (index != span[0])


def test_it_is_written_where_nothing_was(tmp_path):
    path = tmp_path / "new" / "place" / "strip.png"
    arguments = (frames(3), torch.arange(3) + 0.5, [(0, 2), (2, 3)], ["What?  red"])
    save_strip(path, *arguments)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(draw_strip(*arguments)))
