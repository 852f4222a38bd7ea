"""A page to look at: pictures of formulas, what was meant and what was read, drawn side by side, worst first.

One HTML file without scripts and without anything from elsewhere; the pictures are in it.
"""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from quicksviewer.qwen_vl_finetune.evaluation import compare
from quicksviewer.synthetic.formulas import render
from quicksviewer.utils.image import to_rgb

WRONG, RIGHT = 60, 20
"""Formulas of each sort that a page shows, the wrong ones from the worst on."""
SIDE = 480
"""Longest side of a picture on the page, in pixels."""
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .3rem .8rem; text-align: left; }
tr + tr td { border-top: 1px solid #8884; } td.n, th.n { text-align: right; }
img { background: #fff; max-width: 16rem; } code { white-space: pre-wrap; word-break: break-all; }
.wrong { color: #b00020; } .right { color: #0a7d34; } small { color: #777; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } .wrong { color: #ff6b81; }
  .right { color: #5fd38a; } }
"""


def write_page(path: str | Path, title: str, dataset, after: dict, before: dict | None = None) -> None:
    """The page of an evaluation, and of the one before training where it is given."""
    records = sorted(after["records"], key=lambda record: -record["cer"])
    wrong = [record for record in records if record["cer"] > 0]
    right = [record for record in records if record["cer"] == 0]
    earlier = {record["index"]: record for record in (before or {}).get("records", [])}
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>",
        _measures(after, before),
        f"<h2>Read wrongly: {len(wrong)} of {len(records)}, the worst {min(len(wrong), WRONG)}</h2>",
        _rows(wrong[:WRONG], earlier, dataset),
        f"<h2>Read to the letter: {len(right)}, of which {min(len(right), RIGHT)}</h2>",
        _rows(right[:RIGHT], earlier, dataset),
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _measures(after: dict, before: dict | None) -> str:
    lines = ["<table style='width:auto'><tr><th>measure<th class=n>before<th class=n>after</tr>"]
    for name, earlier, later in compare(before or after, after):
        said = f"{earlier:.3f}" if before else ""
        lines.append(f"<tr><td>{escape(name)}<td class=n>{said}<td class=n>{later:.3f}</tr>")
    return "\n".join([*lines, "</table>", f"<p>{after['samples']} held-out formulas, greedy answers.</p>"])


def _rows(records: list[dict], earlier: dict, dataset) -> str:
    head = "<table><tr><th>picture<th>meant<th>read<th>drawn<th>before<th class=n>CER</tr>"
    return "\n".join([head, *(_row(record, earlier, dataset) for record in records), "</table>"])


def _row(record: dict, earlier: dict, dataset) -> str:
    tone = "right" if record["cer"] == 0 else "wrong"
    cells = [
        _inline(dataset[record["index"]]["image"]),
        f"<code>{escape(record['expected'])}</code>",
        f"<code class={tone}>{escape(record['predicted']) or '(nothing)'}</code>",
        _drawn(record["predicted"]),
        f"<code>{escape(earlier.get(record['index'], {}).get('predicted', ''))}</code>",
    ]
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}<td class=n>{record['cer']:.2f}</tr>"


def _drawn(latex: str) -> str:
    """What was read as a picture, or why it is none."""
    if not latex:
        return "<small>nothing to draw</small>"
    try:
        return _inline(render(latex))
    except (ValueError, ModuleNotFoundError) as error:
        return f"<small>{escape(str(error).rpartition(': ')[2])}</small>"


def _inline(image: Image.Image) -> str:
    image = to_rgb(image)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
