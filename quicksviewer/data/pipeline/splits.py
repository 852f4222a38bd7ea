"""Which rows are train, validation and test, and how often: pure functions of rows, seed and fingerprint."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from quicksviewer.data.stream import epoch_rng


def shares(count: int, ratios: dict[str, float]) -> dict[str, int]:
    """`count` things dealt out by ratio, all of them; what rounding leaves goes to the largest remainders."""
    total = sum(ratios.values())
    exact = {name: count * ratio / total for name, ratio in ratios.items()}
    dealt = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (dealt[name] - exact[name], list(exact).index(name)))
    for name in by_remainder[: count - sum(dealt.values())]:
        dealt[name] += 1
    return dealt


def cut(
    length: int,
    ratios: dict[str, float],
    fingerprint: str,
    seed: int,
    shuffle: bool = True,
    values: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Split -> its rows, ascending int64; every row is in one split.

    `values`: of a field of which each value is shared out by itself. `groups`: of a field whose rows with one
    value stay together; the ratios are then of values.
    """
    rng = epoch_rng(fingerprint, seed, 0)
    units = [np.array([row]) for row in range(length)] if groups is None else _rows_by(groups)
    strata = [range(len(units))] if values is None else _rows_by(values)
    rows: dict[str, list] = {name: [] for name in ratios}
    for stratum in strata:
        order = rng.permutation(stratum) if shuffle else np.asarray(stratum)
        begin = 0
        for name, count in shares(len(order), ratios).items():
            rows[name] += [units[unit] for unit in order[begin : begin + count]]
            begin += count
    return {name: _ascending(parts) for name, parts in rows.items()}


def balance(
    rows: np.ndarray, values: Sequence[str], strategy: str, fingerprint: str, seed: int
) -> np.ndarray:
    """As many rows of every value: repeated up to the most frequent one (oversample), or only as many as the
    rarest has (undersample). `values`: one for each of `rows`. Ascending int64."""
    members = [rows[places] for places in _rows_by(values)]
    target = (max if strategy == "oversample" else min)(map(len, members))
    rng = epoch_rng(fingerprint, seed, 1)
    chosen = []
    for own in members:
        whole, rest = divmod(target, len(own))
        chosen += [own] * whole + [rng.permutation(own)[:rest]]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _rows_by(values: Sequence[str]) -> list[np.ndarray]:
    """Places of every value, values in the order in which they first come."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, value in enumerate(values):
        places[value].append(place)
    return [np.array(found, dtype=np.int64) for found in places.values()]


def _ascending(parts: list) -> np.ndarray:
    return np.sort(np.concatenate(parts)).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
