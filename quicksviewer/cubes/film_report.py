"""The document of `bench film`: who wins, a table for every group, and where cuts lie along the time."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from quicksviewer.cubes.report import table

BUDGET_NAMES = {"plan": "as many as planned", "shots": "as many as shots"}
TITLE = "# Where cubes are cut on real video"
READING = (
    "Features: EfficientNet-lite0 (ImageNet), pooled over the picture. Reference: TransNetV2's cuts. "
    "`F1`: of boundaries within one sampled frame. `error / least`: squared distance of frames to the "
    "mean of their cube, over the least possible with so many cubes, which `optimal` reaches. `ms`: "
    "cutting the whole group on the processor, features excluded; `codec` reads the packets of the file "
    "in it. `random` cuts anywhere, the mean of twenty draws, and says what an F1 is worth. Gates: mean "
    "of three seeds. A learned gate saw no labels and cuts the halves of videos that it did not learn "
    "from. With as many cubes as shots F1 can be 1; with the planned number it can be at most what the "
    "table's head says."
)
WIDTH, LEFT, ROW, HEAD = 1100, 220, 22, 30


def verdict(results: list[dict]) -> str:
    """What stands first: where uniform cubes win or tie."""
    lines = []
    for result in results:
        for budget, figures in result["budgets"].items():
            rows = figures["rows"]
            others = [name for name in rows if name not in ("uniform", "random", "the shots themselves")]
            ahead = [name for name in others if rows[name]["f1"] <= rows["uniform"]["f1"]]
            nearer = [name for name in others if rows[name]["error"] >= rows["uniform"]["error"]]
            where = f"{result['name']}, {result['fps']:g} a second, cubes {BUDGET_NAMES[budget]}"
            for what, names in (("find shots at least as well", ahead), ("hold frames as close", nearer)):
                if names:
                    lines.append(f"- {where}: uniform cubes {what} as {'; '.join(names)}.")
    if not lines:
        return "Uniform cubes win nowhere."
    return "\n".join(["Where uniform cubes win or tie (the figures are in the tables below):", "", *lines])


def group_lines(result: dict) -> list[str]:
    """The table of a group: a row for each way, F1 and error at both budgets, and the time."""
    budgets, head, most = result["budgets"], ["way to cut"], []
    for budget, figures in budgets.items():
        head += [f"F1, {BUDGET_NAMES[budget]}", f"error / least, {BUDGET_NAMES[budget]}"]
        found, true = figures["cubes"] - 1, figures["shots"] - 1
        most.append(
            f"{BUDGET_NAMES[budget]}: {figures['cubes']} cubes, {figures['shots']} shots, "
            f"F1 at most {2 * min(found, true) / max(found + true, 1):.2f}"
        )
    names = dict.fromkeys(name for figures in budgets.values() for name in figures["rows"])
    rows = []
    for name in names:
        found = [figures["rows"].get(name) for figures in budgets.values()]
        cells = [f"{row[key]:.2f}" if row else "-" for row in found for key in ("f1", "error")]
        taken = f"{found[0]['milliseconds']:.1f}" if found[0] else "-"
        rows.append([name, *cells, taken])
    videos = ", ".join(result["videos"])
    title = f"## {result['name']} at {result['fps']:g} frames per second"
    return [
        title,
        "",
        f"{videos}: {result['frames']} frames. {'; '.join(most)}.",
        "",
        *table([*head, "ms"], rows),
        "",
    ]


def timeline(path: Path, part: dict) -> None:
    """A line for every way, with a tick where it cuts; the reference first, its cuts through all lines."""
    start, end = part["seconds"]
    cuts = part["cuts"]
    sheet = Image.new("RGB", (WIDTH, HEAD + ROW * len(cuts) + 10), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    scale = (WIDTH - LEFT - 20) / max(end - start, 1e-9)
    for second in cuts["shots"]:
        x = LEFT + (second - start) * scale
        pen.line((x, HEAD, x, sheet.height - 10), (215, 225, 240), 3)
    for place, (name, seconds) in enumerate(cuts.items()):
        y = HEAD + ROW * place
        pen.text((8, y + 2), name, (0, 0, 0), font)
        for second in seconds:
            x = LEFT + (second - start) * scale
            pen.line((x, y + 3, x, y + ROW - 4), (200, 60, 60) if name == "shots" else (40, 90, 180), 1)
    pen.text((LEFT, 6), f"{start:.0f} s to {end:.0f} s, planned number of cubes", (0, 0, 0), font)
    sheet.save(path, optimize=True)


def write_document(path: Path, results: list[dict], args) -> None:
    """The document and its picture beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.with_name(f"{path.stem}_cuts.png")
    timeline(picture, results[0]["first_part"])
    videos = f" --videos {' '.join(map(str, args.videos))}" if args.videos else ""
    lines = [TITLE, "", verdict(results), "", READING, ""]
    for result in results:
        lines += group_lines(result)
    lines += [f"![cuts of the first part]({picture.name})", "", "To run it again:", ""]
    lines += [f"    python -m quicksviewer bench film --steps {args.steps}{videos}", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
