"""P16: where learned gates cut, against the best possible cut and against rules without parameters.

    python benchmarks/boundaries.py [--steps 240] [--seeds 3]

Planted scenes: a video is a row of scenes, each a point in a few dimensions of the features that drifts
slowly; other dimensions hold flashes of single frames and noise, which move more than a change of scene does.
Every kind of cubing learns on the same videos from the same start (without the prior that favours large
changes) by the same loss: from the cube that holds a frame, say the frame's scene; from the thumbnail, say
the mean of all scenes. Only the road of the gradient differs. Held-out videos: squared distance of frames to
the mean of their cube over the least possible (by dynamic programming), F1 of planted cuts at +-1 frame, and
the steps until F1 is 0.95 for the first time and until it stays there (a kind that does not get there counts
with all its steps). Prints one JSON.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing import Cuts, build_cubing
from quicksviewer.model.multimodal_cubing.router import smooth_cubes
from quicksviewer.model.multimodal_resampler.base import mean_by_cube

FRAMES, SCENES, WIDTH, SIGNAL = 60, 6, 32, 8
BATCH, HELD_OUT, EVERY = 8, 48, 10
RATES = (3e-4, 1e-3, 3e-3)
"""Every kind learns at each of these rates, and is judged by its best."""
LEARNED = ("momentum", "cumulative", "reinmax", "subset", "soft", "router")
FIXED = ("uniform", "change_point", "energy", "optimal")
"""`energy` is the untrained gate with its prior: the largest changes."""
GOOD, TARGET_ERROR = 0.95, 1.15
FLASH = 0.7
"""Strength of flashes, in units of the scenes, per dimension."""


@dataclass
class Films:
    """Videos of FRAMES frames: features (V N, D), what to say of each frame (V N, SIGNAL), cuts (V, K)."""

    features: Tensor
    content: Tensor
    cuts: Tensor

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> "Films":
        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        places = torch.rand(count, FRAMES - 5, generator=generator).argsort(dim=1)[:, : SCENES - 1]
        cuts = 3 + places.sort(dim=1).values
        scene = (torch.arange(FRAMES)[None, :, None] >= cuts[:, None]).sum(dim=2)
        content = normal(count, SCENES, SIGNAL).gather(1, scene[..., None].expand(-1, -1, SIGNAL))
        drift = normal(count, SCENES, SIGNAL).gather(1, scene[..., None].expand(-1, -1, SIGNAL))
        age = torch.arange(FRAMES)[None] - torch.cat([cuts.new_zeros(count, 1), cuts], 1).gather(1, scene)
        signal = content + 0.02 * drift * age[..., None] + 0.1 * normal(count, FRAMES, SIGNAL)
        flash = (
            FLASH
            * (torch.rand(count, FRAMES, 1, generator=generator) < 0.15)
            * normal(count, FRAMES, WIDTH - SIGNAL)
        )
        other = flash + 0.1 * normal(count, FRAMES, WIDTH - SIGNAL)
        features = torch.cat([signal, other], dim=2)
        return cls(features.flatten(0, 1), content.flatten(0, 1), cuts)

    @property
    def count(self) -> int:
        return len(self.cuts)

    def cut(self, cubing: nn.Module, *noise) -> Cuts:
        return cubing(self.features, [FRAMES] * self.count, [True] * self.count, *noise)


class Reader(nn.Module):
    """A cubing and what reads its cubes: the stand-in for resampler and language model."""

    def __init__(self, kind: str, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        prior = 1.0 if kind == "energy" else 0.0
        config = CubingConfig(
            kind="momentum" if kind == "energy" else kind, frames_per_cube=FRAMES / SCENES, energy_prior=prior
        )
        self.cubing = build_cubing(config, WIDTH)
        self.says_cube, self.says_all = nn.Linear(WIDTH, SIGNAL), nn.Linear(WIDTH, SIGNAL)
        for layer in (self.says_cube, self.says_all):  # it can read already, as a language model can
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def loss(self, films: Films, noise_weight: float, generator: torch.Generator) -> Tensor:
        cuts = films.cut(self.cubing, noise_weight, generator)
        cubes = mean_by_cube(films.features, cuts.cube_of_frame, sum(cuts.cubes), cuts.share)
        if cuts.confidence is not None:
            cubes = smooth_cubes(cubes[:, None], cuts.confidence)[:, 0]
        said = self.says_cube(cubes)[cuts.cube_of_frame]
        weighted = (cuts.mask[:, None] * films.features).view(films.count, FRAMES, -1).sum(dim=1) / SCENES
        starts = torch.nn.functional.pad(films.cuts, (1, 0))
        content = films.content.view(films.count, FRAMES, -1)
        mean_scene = content.gather(1, starts[..., None].expand(-1, -1, SIGNAL)).mean(dim=1)
        loss = nn.functional.mse_loss(said, films.content)
        loss = loss + nn.functional.mse_loss(self.says_all(weighted), mean_scene)
        return loss + self.cubing.config.aux_weight * cuts.penalty() / (films.count * (FRAMES - 1))


def squared_error(films: Films, cuts: Cuts) -> Tensor:
    mean = mean_by_cube(films.features, cuts.cube_of_frame, sum(cuts.cubes))
    return (films.features - mean[cuts.cube_of_frame]).square().sum()


def f1(films: Films, cuts: Cuts) -> float:
    """Of planted cuts, a cut within one frame of one counts; all videos have as many cuts as planted."""
    opens = (cuts.mask.detach().view(films.count, FRAMES) > 0.5)[:, 1:]
    near = torch.nn.functional.max_pool1d(opens.float()[:, None], 3, stride=1, padding=1)[:, 0]
    return float(near.gather(1, films.cuts - 1).mean())


@torch.no_grad()
def judge(reader: Reader, films: Films, least: float) -> dict[str, float]:
    reader.eval()
    cuts = films.cut(reader.cubing)
    reader.train()
    return {"f1": f1(films, cuts), "error": float(squared_error(films, cuts)) / least}


def learn(kind: str, seed: int, rate: float, steps: int, held_out: Films, least: float) -> list[dict]:
    """Judgements every EVERY steps, the first before learning."""
    reader = Reader(kind, seed)
    optimizer = torch.optim.Adam(reader.parameters(), rate)
    data, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    curve = [judge(reader, held_out, least)]
    for step in range(1, steps + 1):
        weight = reader.cubing.config.noise_weight(step / steps)
        optimizer.zero_grad()
        reader.loss(Films.draw(BATCH, data), weight, noise).backward()
        optimizer.step()
        if step % EVERY == 0:
            curve.append(judge(reader, held_out, least))
    return curve


def steps_to_good(curve: list[dict]) -> tuple[int | None, int | None]:
    """Steps until F1 is GOOD for the first time, and until it stays so; None: not reached."""
    good = [row["f1"] >= GOOD for row in curve]
    first = good.index(True) * EVERY if any(good) else None
    bad = [place for place, is_good in enumerate(good) if not is_good]
    last = bad[-1] + 1 if bad else 0
    return first, None if last == len(curve) else last * EVERY


def row_of(kind: str, args, held_out: Films, least: float) -> dict:
    """Medians over seeds at the kind's best rate: that with the best mean F1 over the whole curve."""
    best, chosen = -1.0, None
    for rate in RATES:
        curves = [learn(kind, seed, rate, args.steps, held_out, least) for seed in range(args.seeds)]
        score = statistics.mean(row["f1"] for curve in curves for row in curve)
        if score > best:
            best, chosen = score, (rate, curves)
    rate, curves = chosen
    reached = [steps_to_good(curve) for curve in curves]
    row = {name: statistics.median(curve[-1][name] for curve in curves) for name in ("f1", "error")}
    return row | {"rate": rate, "first_good": [a for a, _ in reached], "stays_good": [b for _, b in reached]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    held_out = Films.draw(HELD_OUT, torch.Generator().manual_seed(10_000))
    least = float(squared_error(held_out, held_out.cut(Reader("optimal", 0).cubing)))
    rows = {kind: judge(Reader(kind, 0), held_out, least) for kind in FIXED}
    rows |= {kind: row_of(kind, args, held_out, least) for kind in LEARNED}
    steps = {kind: statistics.median(n or args.steps for n in rows[kind]["stays_good"]) for kind in LEARNED}
    for kind in LEARNED[1:]:
        row = rows[kind]
        row["steps_over_published"] = round(steps[kind] / steps["momentum"], 2)
        row["pass"] = (
            row["error"] <= TARGET_ERROR and row["f1"] >= GOOD and 2 * steps[kind] <= steps["momentum"]
        )
    for row in rows.values():
        row.update({name: round(row[name], 3) for name in ("f1", "error")})
    print(json.dumps({"steps": args.steps, "seeds": args.seeds, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
