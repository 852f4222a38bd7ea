"""From scored records to numbers: means with intervals, by kind and by every group."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from quicksviewer.eval.metrics import mean, wilson

FEW_CLUSTERS = 10
"""With fewer videos the variation between them is not estimated."""


def summarise(records: Sequence[dict], metrics: Mapping[str, float]) -> dict:
    """`metric`: the headline; `by_kind`: a row of each kind, and one of all under "overall"; `by`: group ->
    value -> row; `macro`: the mean of the kinds' headlines."""
    kinds = split(records, lambda record: record["kind"])
    headline = next(iter(metrics))
    by_kind = {kind: row(some, metrics) for kind, some in kinds.items()} | {"overall": row(records, metrics)}
    names = sorted({name for record in records for name in record["groups"]})
    by = {
        name: {
            value: row(some, metrics)
            for value, some in split(
                [record for record in records if name in record["groups"]], lambda r, n=name: r["groups"][n]
            ).items()
        }
        for name in names
    }
    values = [by_kind[kind][headline] for kind in kinds]
    macro = None if None in values else mean(values)
    return {"metric": headline, "macro": macro, "by_kind": by_kind, "by": by}


def split(records: Sequence[dict], key) -> dict[str, list[dict]]:
    """Records by key, keys in order."""
    groups = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(sorted(groups.items()))


def row(records: Sequence[dict], metrics: Mapping[str, float]) -> dict:
    """Counts, and of every metric its mean: the headline with `low` and `high`, the others under `others`.
    Where a judge has not spoken yet, the means are None."""
    out = {"items": len(records)}
    out["unanswered"] = sum(record["read"] is None for record in records)
    out["failed"] = sum(record["error"] is not None for record in records)
    headline, *others = metrics
    out[headline], out["low"], out["high"] = estimate(records, headline, metrics[headline])
    if others:
        spans = {name: estimate(records, name, metrics[name]) for name in others}
        out["others"] = {
            name: dict(zip(("mean", "low", "high"), span, strict=True)) for name, span in spans.items()
        }
    chances = [record["chance"] for record in records]
    if chances and None not in chances:
        out["chance"] = mean(chances)
    if records and records[0].get("blind_scores") is not None:
        out["blind"] = mean([record["blind_scores"][headline] for record in records])
    return out


def estimate(records: Sequence[dict], metric: str, most: float) -> tuple[float | None, ...]:
    """Mean of a metric and its 95% interval.

    The interval is Wilson's, for as many independent items as the records are worth. For scores that are no
    shares (0 to `most`) it is too wide, never too narrow."""
    if not records or any(record["scores"] is None for record in records):
        return None, None, None
    values = [record["scores"][metric] / most for record in records]
    low, high = wilson(mean(values), worth(values, [record["video"] for record in records]))
    return mean(values) * most, low * most, high * most


def worth(values: Sequence[float], clusters: Sequence[str]) -> float:
    """As many independent items as these are worth: questions about one video stand and fall together.

    Where there are few videos, or all values are the same, nothing can be said of how alike the items of a
    video are, and they count as if they were entirely: Kish's (sum of sizes)^2 / (sum of squared sizes), the
    number of videos where all have equally many items. (L. Kish, Survey Sampling, 1965.)"""
    sizes = Counter(clusters).values()
    if len(sizes) < FEW_CLUSTERS or len(set(values)) == 1:
        return sum(sizes) ** 2 / sum(size**2 for size in sizes)
    return len(values) / design_effect(values, clusters)


def design_effect(values: Sequence[float], clusters: Sequence[str]) -> float:
    """By what factor the mean varies more than that of independent items, at least 1: the squares of sums of
    deviations within a cluster, over the squares of deviations, times k / (k - 1) for k clusters, whose
    deviations are from a mean of their own. (A. C. Cameron, D. L. Miller: A Practitioner's Guide to
    Cluster-Robust Inference, 2015.)"""
    centre, sums, squares = mean(list(values)), defaultdict(float), 0.0
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - centre
        squares += (value - centre) ** 2
    k = len(sums)
    if k in (1, len(values)) or math.isclose(squares, 0.0, abs_tol=1e-12):
        return 1.0
    return max(1.0, sum(total**2 for total in sums.values()) / squares * k / (k - 1))
