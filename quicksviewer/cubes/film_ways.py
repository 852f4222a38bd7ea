"""Ways to cut that need no labels, and how good they are on parts of real videos."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from quicksviewer.cubes.measures import least_error, matches, within_error
from quicksviewer.cubes.methods import Clip, cut_with
from quicksviewer.cubes.unlabelled import learn
from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing import Cubing, build_cubing

GATES = {
    "published": {"kind": "momentum", "energy_features": False, "energy_prior": 0.0},
    "momentum": {"kind": "momentum"},
    "subset": {"kind": "subset"},
    "soft": {"kind": "soft"},
}
"""Gates that can learn -> settings of their cubing. Untrained, the last three are one."""
RULES = ("uniform", "change_point", "codec", "colours", "optimal")
SEEDS, DRAWS, ROUNDS = 3, 20, 3
"""Starts of a gate, random cuts, and timed calls, of which the fastest counts."""
BUDGETS = ("plan", "shots")
"""As many cubes as the model plans, or as the video has shots."""


@dataclass(frozen=True)
class Part:
    """A video, or a half of one: what the methods see, and the first sampled frames of its shots."""

    clip: Clip
    shots: list[int]

    def of(self, budget: str, **settings) -> Clip:
        """The clip, to be cut into the cubes of a budget."""
        per_cube = len(self.clip.times) / (len(self.shots) + 1)
        per_cube = per_cube if budget == "shots" else CubingConfig.frames_per_cube
        return replace(self.clip, config=CubingConfig(frames_per_cube=per_cube, **settings))


@dataclass(frozen=True)
class Group:
    """Parts that are judged together. `halves`: two of every video, so that gates can learn from one and cut
    the other."""

    name: str
    fps: float
    parts: list[Part]
    halves: bool


Way = Callable[[int, Part, str], list[int]]
"""(place of the part in its group, part, budget) -> first frames of all cubes but the first."""


def by_chance(seed: int, place: int, part: Part, budget: str) -> list[int]:
    """Cuts anywhere."""
    clip = part.of(budget)
    generator = torch.Generator().manual_seed(1000 * seed + place)
    order = torch.randperm(len(clip.times) - 1, generator=generator)
    return sorted((order[: clip.num_cubes - 1] + 1).tolist())


def by_rule(name: str, place: int, part: Part, budget: str) -> list[int]:
    """A method without weights."""
    return cut_with(name, part.of(budget))


def by_gates(gate: str, gates: list[Cubing], place: int, part: Part, budget: str) -> list[int]:
    """A gate; `gates` has one for every part."""
    clip = replace(part.of(budget, **GATES[gate]), trained=gates[place])
    gates[place].config = clip.config
    return cut_with(clip.config.kind, clip)


def fresh_gates(group: Group, gate: str, seed: int) -> list[Cubing]:
    torch.manual_seed(seed)
    width = group.parts[0].clip.features.shape[1]
    return [build_cubing(CubingConfig(**GATES[gate]), width).eval()] * len(group.parts)


def learned_gates(group: Group, gate: str, steps: int, seed: int) -> list[Cubing]:
    """First halves are cut by a gate that learned from all second halves, and the other way round."""
    features = [part.clip.features for part in group.parts]
    pair = [learn(CubingConfig(**GATES[gate]), features[half::2], steps, seed) for half in (1, 0)]
    return pair * (len(features) // 2)


def ways_of(group: Group, steps: int) -> dict[str, list[Way]]:
    """Row of the table -> its ways, whose figures are averaged: one, or one for each seed."""
    rows = {"random": [partial(by_chance, seed) for seed in range(DRAWS)]}
    rows |= {rule: [partial(by_rule, rule)] for rule in RULES}
    for gate, row in (
        ("published", "published gate, untrained"),
        ("momentum", "gate with its prior, untrained"),
    ):
        rows[row] = [partial(by_gates, gate, fresh_gates(group, gate, seed)) for seed in range(SEEDS)]
    for gate in GATES if group.halves else ():
        learned = [learned_gates(group, gate, steps, seed) for seed in range(SEEDS)]
        rows[f"{gate}, learned"] = [partial(by_gates, gate, gates) for gates in learned]
    return rows


def judge(way: Way, parts: dict[int, Part], budget: str, least: float) -> dict[str, float]:
    """F1 and error over all parts together; the fastest of a few times."""
    cuts, seconds = {}, []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        cuts = {place: way(place, part, budget) for place, part in parts.items()}
        seconds.append(time.perf_counter() - started)
    total = sum(len(cuts[place]) + len(part.shots) for place, part in parts.items())
    matched = sum(matches(cuts[place], part.shots) for place, part in parts.items())
    error = sum(within_error(part.clip.features, cuts[place]) for place, part in parts.items())
    f1 = 2 * matched / total if total else 1.0  # nothing to find, nothing found
    return {"f1": f1, "error": error / least, "milliseconds": 1000 * min(seconds)}


def result_of(group: Group, steps: int) -> dict:
    """Figures of all rows at both budgets, and the cuts of the first part (seconds) for the picture."""
    ways, budgets = ways_of(group, steps), {}
    for budget in BUDGETS:
        # without a shot there is one cube to make, and nothing to judge
        parts = {i: part for i, part in enumerate(group.parts) if part.shots or budget == "plan"}
        if not parts:
            continue
        least = sum(least_error(part.clip.features, part.of(budget).num_cubes) for part in parts.values())
        rows = {name: [judge(way, parts, budget, least) for way in row] for name, row in ways.items()}
        if budget == "shots":
            rows["the shots themselves"] = [judge(lambda _, part, __: part.shots, parts, budget, least)]
        budgets[budget] = {
            "cubes": sum(part.of(budget).num_cubes for part in parts.values()),
            "shots": sum(len(part.shots) + 1 for part in parts.values()),
            "rows": {
                name: {key: round(statistics.mean(row[key] for row in judged), 4) for key in judged[0]}
                for name, judged in rows.items()
            },
        }
    first = group.parts[0]
    cuts = {"shots": first.shots} | {name: row[0](0, first, "plan") for name, row in ways.items()}
    times = first.clip.times.tolist()
    return {
        "name": group.name,
        "fps": group.fps,
        "videos": sorted({part.clip.path.rpartition("/")[2] for part in group.parts}),
        "frames": sum(len(part.clip.times) for part in group.parts),
        "budgets": budgets,
        "first_part": {
            "seconds": [times[0], times[-1]],
            "cuts": {n: [times[i] for i in c] for n, c in cuts.items()},
        },
    }
