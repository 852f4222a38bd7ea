"""The document of the study: a table by method, one by kind of question, and bars."""

import statistics
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BRIEF = "brief"
"""The kind of question about short events."""
READING = (
    "All methods make equally many tokens of every video. Mean over seeds ± standard deviation. `event cuts "
    "found`: share of the drawn changes of event with a cut within one frame; there are more cubes than "
    "events, so F1 cannot reach 1. `within`: squared distance of frames to the mean of their cube, over that "
    "to the mean of the video; `least`: the same for the best possible cuts on the same features."
)
CUT_FIGURES = ("recall", "f1", "within", "least")
BAR, ROW, LEFT = 420, 26, 170


def spread(values: list[float]) -> str:
    """Mean over seeds, and the standard deviation where there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def by_method(results: list[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(result["settings"]["method"], []).append(result)
    return groups


def accuracies(rows: list[dict], kind: str) -> list[float]:
    return [row["accuracy"][kind] for row in rows if kind in row["accuracy"]]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    line = "| " + " | ".join(head) + " |"
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    return [line, rule, *("| " + " | ".join(row) + " |" for row in rows)]


def methods_table(groups: dict[str, list[dict]]) -> list[str]:
    rows = []
    for method, runs in groups.items():
        cuts = [[run["cuts"]["own"][figure] for run in runs] for figure in CUT_FIGURES]
        cells = [accuracies(runs, "overall"), accuracies(runs, BRIEF), *cuts]
        minutes = statistics.mean(run["train_seconds"] for run in runs) / 60
        rows.append([method, *(spread(cell) if cell else "-" for cell in cells), f"{minutes:.1f}"])
    head = ["method", "accuracy", "short events", "event cuts found", "F1", "within", "least", "minutes"]
    return table(head, sorted(rows, key=lambda row: row[1], reverse=True))


def kinds_table(groups: dict[str, list[dict]]) -> list[str]:
    kinds = [kind for kind in next(iter(groups.values()))[0]["accuracy"] if kind != "overall"]
    items = next(iter(groups.values()))[0]["items"]
    rows = [
        [m, *(f"{statistics.mean(accuracies(runs, k)):.3f}" for k in kinds)] for m, runs in groups.items()
    ]
    return table(["method", *(f"{kind} ({items[kind]})" for kind in kinds)], rows)


def verdict(groups: dict[str, list[dict]]) -> str:
    """What stands first: against uniform cubes, whoever wins."""
    if "uniform" not in groups or len(groups) == 1:
        return "Uniform cubes are not among the methods, so nothing is said against them."
    base = statistics.mean(accuracies(groups["uniform"], "overall"))
    others = {m: statistics.mean(accuracies(runs, "overall")) for m, runs in groups.items() if m != "uniform"}
    best = max(others, key=others.get)
    lost = sorted(method for method, value in others.items() if value < base)
    words = [
        f"The best other method, {best}, answers {100 * (others[best] - base):+.1f} points against uniform."
    ]
    words.append(
        f"Uniform cubes win against {', '.join(lost)}." if lost else "Uniform cubes win against none."
    )
    short = {m: accuracies(runs, BRIEF) for m, runs in groups.items()}
    if short["uniform"] and short[best]:
        gain = statistics.mean(short[best]) - statistics.mean(short["uniform"])
        words.append(f"On short events the difference is {100 * gain:+.1f} points.")
    return " ".join(words)


def bars(path: Path, title: str, values: dict[str, list[float]]) -> None:
    """A bar per method, its mean over seeds, with a tick for every seed."""
    sheet = Image.new("RGB", (LEFT + BAR + 90, ROW * (len(values) + 1) + 10), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    pen.text((8, 4), title, (0, 0, 0), font)
    scale = BAR / max(max(max(v) for v in values.values()), 1e-9)
    for place, (name, numbers) in enumerate(values.items(), start=1):
        y, mean = ROW * place + 4, statistics.mean(numbers)
        pen.text((8, y), name, (0, 0, 0), font)
        pen.rectangle((LEFT, y + 2, LEFT + mean * scale, y + 16), (64, 130, 220))
        for number in numbers:
            pen.line((LEFT + number * scale, y - 1, LEFT + number * scale, y + 19), (0, 0, 0), 2)
        pen.text((LEFT + BAR + 8, y), f"{mean:.3f}", (0, 0, 0), font)
    sheet.save(path)


def write_document(path: Path, results: list[dict], args) -> None:
    """The document and its pictures beside it; written anew after every run."""
    groups = by_method(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, title, of in (
        ("accuracy", "accuracy on held-out questions", lambda run: run["accuracy"]["overall"]),
        ("recall", "event cuts found within one frame", lambda run: run["cuts"]["own"]["recall"]),
        ("within", "squared distance within cubes", lambda run: run["cuts"]["own"]["within"]),
    ):
        picture = path.with_name(f"{path.stem}_{name}.png")
        bars(picture, title, {method: [of(run) for run in runs] for method, runs in groups.items()})
        pictures += [f"![{title}]({picture.name})", ""]
    steps = "the recipe's steps" if args.steps is None else f"{args.steps} steps of the three stages"
    seeds = sorted({result["settings"]["seed"] for result in results})
    lines = [
        "# Which cubing answers best",
        "",
        verdict(groups),
        "",
        f"Recipe `{args.recipe}`, {steps}, seeds {seeds}. {READING}",
        "",
        *methods_table(groups),
        "",
        "By kind of question (number of questions), mean over seeds:",
        "",
        *kinds_table(groups),
        "",
        *pictures,
        "To run it again:",
        "",
        f"    python -m quicksviewer data make --recipe {args.recipe}",
        f"    python -m quicksviewer bench cubing --recipe {args.recipe} --seeds {args.seeds} "
        + (f"--steps {' '.join(map(str, args.steps))} " if args.steps else "")
        + f"--methods {' '.join(groups)}",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
