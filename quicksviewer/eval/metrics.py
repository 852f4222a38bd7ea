"""From scored records to a table."""

import math
from collections import defaultdict


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def interval(values: list[float]) -> tuple[float, float]:
    """Wilson's 95% interval of the mean of scores between 0 and 1."""
    return wilson(mean(values), len(values)) if values else (math.nan, math.nan)


def wilson(p: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share `p` of `n` independent cases."""
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def by_kind(records: list[dict]) -> dict[str, dict]:
    """Kind -> number, accuracy, interval, chance; and the same for all under "overall"."""
    groups = defaultdict(list)
    for record in records:
        groups[record["kind"]].append(record)
    groups["overall"] = records
    return {kind: _row(rows) for kind, rows in groups.items()}


def _row(records: list[dict]) -> dict:
    scores = [record["score"] for record in records]
    low, high = interval(scores)
    row = {"items": len(scores), "accuracy": mean(scores), "low": low, "high": high}
    row["chance"] = mean([record["chance"] for record in records])
    if records and "blind_score" in records[0]:
        row["blind"] = mean([record["blind_score"] for record in records])
    return row
