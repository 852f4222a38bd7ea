"""A picture of a video as the model sees it: every frame, and where the cubes begin."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOURS = ((64, 160, 255), (255, 160, 48), (96, 208, 96), (232, 96, 160))
CELL, BAR, GAP, PER_ROW = 96, 18, 3, 12


def cube_spans(cube_of_frame: Tensor) -> list[tuple[int, int]]:
    """First and one past the last frame of every cube of one video."""
    ids = cube_of_frame.tolist()
    starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1]]
    return list(zip(starts, [*starts[1:], len(ids)], strict=True))


def draw_strip(
    pixels_N3HW: Tensor, times_N: Tensor, spans: list[tuple[int, int]], lines: list[str]
) -> Image.Image:
    """Frames in rows, a coloured bar over each cube with the second at which it begins, and lines of text
    below."""
    frames = pixels_N3HW.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
    rows = -(-len(frames) // PER_ROW)
    width = min(len(frames), PER_ROW) * (CELL + GAP) + GAP
    font = ImageFont.load_default(size=14)
    height = rows * (CELL + BAR + 2 * GAP) + 20 * len(lines) + 2 * GAP
    sheet = Image.new("RGB", (max(width, 640), height), (24, 24, 28))
    pen = ImageDraw.Draw(sheet)
    for cube, (start, stop) in enumerate(spans):
        for index in range(start, stop):
            x = GAP + index % PER_ROW * (CELL + GAP)
            y = GAP + index // PER_ROW * (CELL + BAR + 2 * GAP)
            joined = 0 if index == start else GAP
            pen.rectangle((x - joined, y, x + CELL - 1, y + BAR - 3), COLOURS[cube % len(COLOURS)])
            if index == start:
                pen.text((x + 4, y - 1), f"{float(times_N[index]):.1f} s", fill=(0, 0, 0), font=font)
            sheet.paste(
                Image.fromarray(frames[index]).resize((CELL, CELL), Image.Resampling.NEAREST), (x, y + BAR)
            )
    for place, line in enumerate(lines):
        pen.text((GAP + 4, height - 20 * (len(lines) - place)), line, fill=(235, 235, 235), font=font)
    return sheet


def save_strip(path: str | Path, *args) -> None:
    """Draw and write; the folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draw_strip(*args).save(path)
