"""A strip of a video with the cuts of many methods under each other, as PNG or as one HTML file."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOURS = ((64, 160, 255), (255, 160, 48), (96, 208, 96), (232, 96, 160))
CELL, BAR, GAP, LABEL, PER_ROW = 72, 16, 2, 132, 24
PAPER, INK = (24, 24, 28), (235, 235, 235)


def draw(pixels_N3SS: Tensor, times_N: Tensor, cuts: dict[str, list[int]], lines: list[str]) -> Image.Image:
    """Frames in rows; below each row a bar for every method, which changes colour where a cube begins."""
    frames = pixels_N3SS.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
    step = CELL + BAR * (len(cuts) + 1) + 4 * GAP
    rows = -(-len(frames) // PER_ROW)
    width = LABEL + min(len(frames), PER_ROW) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (max(width, 480), rows * step + 20 * len(lines) + 2 * GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for index, frame in enumerate(frames):
        x, y = LABEL + index % PER_ROW * (CELL + GAP), GAP + index // PER_ROW * step
        if index % PER_ROW == 0:
            for place, name in enumerate(cuts):
                pen.text((GAP + 4, y + CELL + BAR * (place + 1) - 1), name, INK, font)
        sheet.paste(Image.fromarray(frame).resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + CELL), f"{float(times_N[index]):.1f}", INK, font)
        for place, starts in enumerate(cuts.values()):
            _bar(pen, x, y + CELL + BAR * (place + 1), index, starts)
    for place, line in enumerate(lines):
        pen.text((GAP + 4, sheet.height - 20 * (len(lines) - place)), line, INK, font)
    return sheet


def _bar(pen: ImageDraw.ImageDraw, x: int, y: int, index: int, starts: list[int]) -> None:
    """One frame's piece of a method's bar; a gap and a white line where a cube begins."""
    cube = sum(start <= index for start in starts)
    begins = index in starts
    pen.rectangle((x - (0 if begins else GAP), y, x + CELL - 1, y + BAR - 4), COLOURS[cube % len(COLOURS)])
    if begins:
        pen.rectangle((x, y - 1, x + 2, y + BAR - 3), (255, 255, 255))


def save(path: str | Path, sheet: Image.Image) -> None:
    """Write .png, or .html with the picture inside. ValueError for another ending."""
    path = Path(path)
    if path.suffix not in (".png", ".html"):
        raise ValueError(f"{path} must end in .png or .html")
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    if path.suffix == ".png":
        path.write_bytes(buffer.getvalue())
        return
    data = base64.b64encode(buffer.getvalue()).decode()
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>Cubes</title><body style="background:#18181c">'
        f'<img alt="frames and the cuts of every method" src="data:image/png;base64,{data}">\n'
    )
