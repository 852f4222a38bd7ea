"""Which rows are train, validation and test, and how often: pure functions of rows, seed and fingerprint."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from quicksviewer.data.stream import epoch_rng


def deal(counts: Iterable[int], ratios: dict[str, float]) -> Iterator[dict[str, int]]:
    """Each of the counts dealt out by ratio, whole: name -> how many.

    What rounding leaves of one goes to the names that are owed most by then, so that the sums over all counts
    come out as well, for up to three names off by less than one.
    """
    total, owed = sum(ratios.values()), dict.fromkeys(ratios, 0.0)
    for count in counts:
        exact = {name: round(count * ratio / total, 9) for name, ratio in ratios.items()}
        dealt = {name: int(value) for name, value in exact.items()}
        owed = {name: round(owed[name] + exact[name] - dealt[name], 9) for name in ratios}
        uneven = [name for name in ratios if exact[name] > dealt[name]]
        for name in sorted(uneven, key=owed.get, reverse=True)[: count - sum(dealt.values())]:
            dealt[name] += 1
            owed[name] -= 1
        yield dealt


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
    for stratum, dealt in zip(strata, deal(map(len, strata), ratios), strict=True):
        order = rng.permutation(stratum) if shuffle else np.asarray(stratum)
        begin = 0
        for name, count in dealt.items():
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
