"""Small pictures with questions whose answers are in the picture."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "black")
SHAPES = ("square", "circle")
QUESTIONS = ("what color is it?", "which shape is in the picture?")


def picture(colour: str, shape: str, size: int = 40) -> Image.Image:
    image = Image.new("RGB", (size, size - 8), "white")
    draw = ImageDraw.Draw(image)
    {"square": draw.rectangle, "circle": draw.ellipse}[shape]((8, 6, 28, 26), fill=colour)
    return image


def make_rows(folder: Path) -> list[dict]:
    """Two questions about each of eight pictures, which are written into the folder."""
    rows = []
    for colour in COLOURS:
        for shape in SHAPES:
            name = f"{colour}_{shape}.png"
            picture(colour, shape).save(folder / name)
            for question, answer in zip(QUESTIONS, (colour, f"a {shape}"), strict=True):
                rows.append({"image": name, "question": question, "answer": answer, "n": len(rows)})
    return rows


def write_jsonl(path: Path, rows: list) -> Path:
    """Rows, or lines that are texts already."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def make_world(root: Path) -> Path:
    """pictures/ with rows.jsonl, and blip/, a checkpoint that knows their words."""
    from quicksviewer.synthetic.tiny_vlm import make_vlm

    (root / "pictures").mkdir(parents=True)
    rows = make_rows(root / "pictures")
    write_jsonl(root / "pictures/rows.jsonl", rows)
    texts = [text for row in rows for text in (row["question"], row["answer"])]
    make_vlm(root / "blip", "blip", [*texts, "a red circle", "a blue square"], task="vqa")
    return root
