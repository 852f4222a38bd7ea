"""A result for people: tables, and as the last line what matters."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

SHOWN_GROUPS = 40
"""Values of a group beyond which its table is left to the file."""


def report(result: dict, path: Path) -> None:
    """A table by kind and by every group, what was lost, and the headline in one line."""
    console = Console(markup=False)
    metric = result.get("metric", "accuracy")
    console.print(_table(f"{result['task']}: {result['model']}", "kind", result["by_kind"], metric))
    for name, rows in result.get("by", {}).items():
        if len(rows) <= SHOWN_GROUPS:
            console.print(_table("", name, rows, metric))
    if failed := [record for record in result["records"] if record["error"]]:
        console.print(
            f"{len(failed)} items could not be asked and count as wrong, the first: {failed[0]['error']}"
        )
    if (judge := result.get("judge")) and judge["unreadable"]:
        console.print(f"{judge['unreadable']} verdicts could not be read and count as 0")
    console.print(f"written to {path}", soft_wrap=True)
    print(headline(result))


def _table(title: str, first: str, rows: dict[str, dict], metric: str) -> Table:
    table = Table(title=title or None)
    others = list(next(iter(rows.values())).get("others", {}))
    counts = ["unanswered"] if any(row.get("unanswered") for row in rows.values()) else []
    guesses = [name for name in ("chance", "blind") if any(name in row for row in rows.values())]
    for column in (first, "items", *counts, metric, "95% interval", *others, *guesses):
        table.add_column(column, justify="left" if column == first else "right")
    for name, row in rows.items():
        cells = [str(row[key]) for key in ("items", *counts)]
        cells += [number(row[metric]), f"{number(row['low'])} .. {number(row['high'])}"]
        cells += [number(row["others"][other]["mean"]) for other in others]
        table.add_row(str(name), *cells, *(number(row.get(guess)) for guess in guesses))
    return table


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def headline(result: dict) -> str:
    """accuracy=0.500 chance=0.250 | a=0.50 b=0.50"""
    rows, metric = result["by_kind"], result.get("metric", "accuracy")
    whole = rows["overall"]
    kinds = " ".join(f"{k}={number(row[metric])}" for k, row in rows.items() if k != "overall")
    extra = {name: whole.get(name) for name in ("chance", "blind")}
    extra |= {name: span["mean"] for name, span in whole.get("others", {}).items()}
    extra = "".join(f" {name}={number(value, 3)}" for name, value in extra.items() if value is not None)
    return f"{metric}={number(whole[metric], 3)}{extra} | {kinds}"


def report_matrix(matrix: dict, path: Path) -> None:
    """Rows of kinds, a column for every number of frames."""
    console, budgets = Console(markup=False), matrix["frames"]
    table = Table(title=f"{matrix['task']}: {matrix['model']}, {matrix['metric']} by most frames of a video")
    for column in ("kind", "items", *budgets):
        table.add_column(column, justify="left" if column == "kind" else "right")
    kinds = next(iter(budgets.values()))["by_kind"]
    for kind, first in kinds.items():
        cells = (budget["by_kind"][kind] for budget in budgets.values())
        shown = (
            f"{number(row[matrix['metric']])} ({number(row['low'])} .. {number(row['high'])})"
            for row in cells
        )
        table.add_row(kind, str(first["items"]), *shown)
    console.print(table)
    console.print(f"written to {path}", soft_wrap=True)
    whole = (f"{n}={number(b['by_kind']['overall'][matrix['metric']], 3)}" for n, b in budgets.items())
    print(f"{matrix['metric']} by frames: {' '.join(whole)}")
