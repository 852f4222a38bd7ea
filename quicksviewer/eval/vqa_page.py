"""A page to look at: pictures with their questions, what was answered and what was expected, mistakes first.

One HTML file without scripts and without anything from elsewhere; the pictures are in it.
"""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from quicksviewer.data.mixture import spread_subset
from quicksviewer.data.pipeline.dataset import PipelineDataset
from quicksviewer.data.pipeline.encode import open_image
from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval.report import number
from quicksviewer.utils.media import MediaError

MISTAKES, RIGHT = 60, 20
"""Questions of each sort that a page shows, spread over all there are."""
SIDE = 192
"""Longest side of a picture on the page, in pixels."""
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr + tr td { border-top: 1px solid #8884; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #8886; border-radius: .5rem; padding: .6rem; }
.card img { display: block; width: 100%; max-height: 12rem; object-fit: contain; image-rendering: pixelated; }
.wrong { color: #b00020; font-weight: 600; } .right { color: #0a7d34; font-weight: 600; }
small { color: #777; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } .wrong { color: #ff6b81; }
  .right { color: #5fd38a; } }
"""


def write_page(path: Path, result: dict, data: PipelineDataset) -> None:
    """The page of an evaluation (`result` as vqa_run.evaluate gives it, with the model's name)."""
    records = result["records"]
    wrong = [record for record in records if record["score"] < 1]
    right = [record for record in records if record["score"] == 1]
    title = f"Questions about pictures: {result['model']}, {result['split']}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>",
        _table(result),
        f"<h2>Mistakes: {len(wrong)} of {len(records)}</h2>",
        _cards(wrong, MISTAKES, data),
        f"<h2>Right: {len(right)}</h2>",
        _cards(right, RIGHT, data),
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _table(result: dict) -> str:
    lines = ["<table><tr><th>questions<th>number<th>accuracy<th>95% interval<th>blind, by type</tr>"]
    for kind, row in result["by_kind"].items():
        lines.append(
            f"<tr><td>{escape(kind)}<td>{row['items']}<td>{row['accuracy']:.3f}"
            f"<td>{row['low']:.3f} .. {row['high']:.3f}<td>{number(row['chance'], 3)}</tr>"
        )
    told = f"<p>Guessing blind by the words of the question: {number(result['blind_by_question'], 3)}</p>"
    return "\n".join([*lines, "</table>", told])


def _cards(records: list[dict], most: int, data: PipelineDataset) -> str:
    chosen = spread_subset(len(records), min(most, len(records))).tolist()
    return "\n".join(["<div class=cards>", *(_card(records[place], data) for place in chosen), "</div>"])


def _card(record: dict, data: PipelineDataset) -> str:
    tone = "right" if record["score"] == 1 else "wrong"
    expected = ", ".join(dict.fromkeys(record["expected"])) or "?"
    said = escape(record["answer"]) or "(nothing)"
    lines = [
        "<div class=card>",
        _picture(record["index"], data),
        f"<div>{escape(record['question'])}</div>",
        f"<div><span class={tone}>{said}</span> &middot; expected {escape(expected)}</div>",
        f"<small>{escape(record['kind'])} &middot; row {record['index']}</small>",
    ]
    if record["error"]:
        lines.append(f"<div class=wrong>{escape(record['error'])}</div>")
    return "".join([*lines, "</div>"])


def _picture(index: int, data: PipelineDataset) -> str:
    """The picture as a data URL in an <img>, or a word where it cannot be shown."""
    try:
        folder = data.source.folder(int(data.rows[index]))
        image = open_image(data.example(index).image, folder, data.encoder.config.image.root_dir)
    except (SampleError, MediaError):
        return "<div class=wrong>no picture</div>"
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
