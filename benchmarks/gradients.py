"""P17: how good the gate's gradients are, against the exact gradient of the expected loss.

    python benchmarks/gradients.py [--cases 24] [--draws 2048]

A case is a short video of random features, log odds of its gates, and a smooth loss of its cubes (means of
frames) and of its thumbnail. All subsets of cuts are enumerated, at most 495 (12 frames, 4 cubes), so that
the expected loss under the estimator's own distribution and its gradient are exact: k best of logistic noise
for the published way and its relatives, exactly-k subsets for the others. Reported for every estimator, over
cases: cosine of its mean gradient with the exact one; cosine of a single draw; variance of a draw as a share
of the squared mean, which no scale changes. Prints one JSON.
"""

import argparse
import itertools
import json
import statistics
import sys
from dataclasses import dataclass

import torch
from common import median_interval
from torch import Tensor

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing.base import Draw, GatedFrames, straight_through
from quicksviewer.model.multimodal_cubing.builder import build_cubing
from quicksviewer.model.multimodal_cubing.router import smooth_cubes
from quicksviewer.model.multimodal_resampler.base import mean_by_cube

WIDTH, HIDDEN, TAU = 6, 12, 0.5
PEER, TARGET_COSINE, TARGET_VARIANCE = "momentum", 0.9, 0.5
ESTIMATORS = ("momentum", "cumulative", "reinmax", "subset", "soft", "router")
LOGISTIC = {"momentum", "cumulative", "reinmax"}
"""Estimators that take the k best of noisy odds; the others know the exact distribution or have no noise."""


@dataclass
class Case:
    """One video: features (N, D), odds (T,), cuts, and a loss as random layers. float64."""

    features: Tensor
    odds: Tensor
    cuts: int
    layers: list[Tensor]

    @classmethod
    def draw(cls, seed: int, gain: float) -> "Case":
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        frames = int(torch.randint(8, 13, (), generator=generator))
        cuts = int(torch.randint(2, 4, (), generator=generator))
        scene = torch.arange(frames) * (cuts + 1) // frames
        features = normal(cuts + 1, WIDTH)[scene] + 0.5 * normal(frames, WIDTH)
        into = gain * normal(cuts + 2, HIDDEN, WIDTH) / WIDTH**0.5
        layers = [into, normal(cuts + 2, HIDDEN), normal(cuts + 2, HIDDEN)]
        return cls(features, normal(frames - 1), cuts, layers)

    def loss(self, units_BUD: Tensor) -> Tensor:
        """Loss of the thumbnail and the cubes, each read by a layer of its own: (B,)."""
        into, shift, out_of = self.layers
        hidden = torch.tanh(torch.einsum("bud,uhd->buh", units_BUD, into) + shift)
        return (hidden * out_of).sum(dim=(1, 2))

    def loss_of(self, mask_BN: Tensor, share_BN3=None, confidence_BC=None, opens=None) -> Tensor:
        """Loss of cuts given as masks, with the gradients of shares and confidences: (B,)."""
        batch, frames = mask_BN.shape
        cubes = batch * (self.cuts + 1)
        x = self.features.repeat(batch, 1)
        opens = mask_BN.detach().flatten() if opens is None else opens
        cube_of_frame = (opens > 0.5).long().cumsum(0) - 1
        share = None if share_BN3 is None else share_BN3.flatten(0, 1)
        cubes_CD = mean_by_cube64(x, cube_of_frame, cubes, share)
        if confidence_BC is not None:
            cubes_CD = smooth_cubes(cubes_CD[:, None], confidence_BC.flatten())[:, 0]
        thumbnail_BD = mask_BN @ self.features / (self.cuts + 1)
        return self.loss(torch.cat([thumbnail_BD[:, None], cubes_CD.view(batch, -1, WIDTH)], dim=1))

    def subsets(self) -> Tensor:
        """All choices of cuts: (M, T) bool."""
        gates = len(self.odds)
        rows = list(itertools.combinations(range(gates), self.cuts))
        return torch.zeros(len(rows), gates, dtype=torch.bool).scatter_(1, torch.tensor(rows), True)


def mean_by_cube64(values: Tensor, cube_of_frame: Tensor, cubes: int, share: Tensor | None) -> Tensor:
    return mean_by_cube(values, cube_of_frame, cubes, None if share is None else share.float()).double()


def log_subset_probability(odds: Tensor, subsets: Tensor) -> Tensor:
    """Exactly-k subsets at the gate's temperature: (M,)."""
    return (subsets * odds / TAU).sum(dim=1).log_softmax(dim=0)


def log_best_probability(odds: Tensor, subsets: Tensor) -> Tensor:
    """The k best of odds plus logistic noise: integral over the worst chosen value. (M,)."""
    x = torch.linspace(-25, 25, 4001, dtype=torch.float64)[:, None] - odds
    above, below = torch.nn.functional.logsigmoid(-x), torch.nn.functional.logsigmoid(x)
    chosen = subsets.double()
    all_but = above @ chosen.T + below @ (1 - chosen).T
    density = below.exp() @ chosen.T  # f = F (1 - F), and the product holds 1 - F already
    return (all_but.exp() * density).sum(dim=0).log() + torch.tensor(50 / 4000).log()


def exact_gradient(case: Case, log_probability) -> Tensor:
    """Gradient of the expected loss: (T,)."""
    odds, subsets = case.odds.clone().requires_grad_(), case.subsets()
    probability = log_probability(odds, subsets).exp()
    if abs(float(probability.detach().sum()) - 1) > 1e-6:
        raise SystemExit(f"probabilities add up to {float(probability.detach().sum())}")
    mask = torch.nn.functional.pad(subsets.double(), (1, 0), value=1.0)
    (probability @ case.loss_of(mask).detach()).backward()
    return odds.grad


def drawn_gradients(case: Case, kind: str, draws: int) -> Tensor:
    """Gradients of as many independent draws: (draws, T)."""
    frames = len(case.features)
    gated = GatedFrames.of([frames] * draws, [True] * draws, torch.device("cpu"))
    odds = case.odds.repeat(draws).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    if kind == "router":
        loss = router_loss(case, odds, gated, draws)
    else:
        cubing = build_cubing(CubingConfig(kind=kind, tau=TAU), WIDTH)
        logits = torch.stack([-odds / 2, odds / 2], dim=1)
        draw = cubing.draw(logits, gated, [case.cuts] * draws, 1.0, generator)
        draw = Draw(draw.hard_G.double(), draw.soft_G, draw.odds_G, draw.subsets)
        mask = gated.mask(cubing.weights(draw), frames * draws)
        opens = gated.mask(draw.hard_G, frames * draws)
        share = cubing.shares(draw, gated, mask) if cubing.reads_shares else None
        share = None if share is None else share.view(draws, frames, 3)
        loss = case.loss_of(mask.view(draws, frames), share, None, opens)
    loss.sum().backward()
    return odds.grad.view(draws, -1)


def router_loss(case: Case, odds: Tensor, gated: GatedFrames, draws: int) -> Tensor:
    """The router's way with its probabilities as input: no noise, smoothing by confidence."""
    frames, cubing = len(case.features), build_cubing(CubingConfig(kind="router"), WIDTH)
    cut = odds.sigmoid()
    hard = cubing.choose(odds.detach(), gated, [case.cuts] * draws).double()
    mask = gated.mask(straight_through(hard, cut), frames * draws).view(draws, frames)
    confidence = gated.mask(cut, frames * draws)[mask.detach().flatten() > 0.5].view(draws, -1)
    return case.loss_of(mask, None, confidence)


def quality(case: Case, kind: str, draws: int) -> dict[str, float]:
    """Cosine of the mean, of single draws, and relative variance."""
    exact = exact_gradient(case, log_best_probability if kind in LOGISTIC else log_subset_probability)
    drawn = drawn_gradients(case, kind, draws)
    mean = drawn.mean(dim=0)
    return {
        "cosine": float(torch.cosine_similarity(mean, exact, dim=0)),
        "cosine_of_one_draw": float(torch.cosine_similarity(drawn, exact[None], dim=1).mean()),
        "variance": float((drawn - mean).square().sum(dim=1).mean() / mean.square().sum()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--draws", type=int, default=2048)
    parser.add_argument("--gain", type=float, default=1.0, help="of the loss's layers: larger is less smooth")
    args = parser.parse_args()
    cases = [Case.draw(seed, args.gain) for seed in range(args.cases)]
    found = {kind: [quality(case, kind, args.draws) for case in cases] for kind in ESTIMATORS}
    rows = {}
    for kind, results in found.items():
        cosines = [row["cosine"] for row in results]
        low, high = median_interval(cosines)
        ratios = [r["variance"] / p["variance"] for r, p in zip(results, found[PEER], strict=True)]
        rows[kind] = {
            "cosine": round(statistics.median(cosines), 3),
            "cosine_interval": [round(low, 3), round(high, 3)],
            "cosine_of_one_draw": round(statistics.median(r["cosine_of_one_draw"] for r in results), 3),
            "variance_over_published": round(statistics.median(ratios), 3),
            "variance_interval": [round(v, 3) for v in median_interval(ratios)],
            "pass": low >= TARGET_COSINE and median_interval(ratios)[1] <= TARGET_VARIANCE,
        }
    targets = {"cosine": TARGET_COSINE, "variance_over_published": TARGET_VARIANCE}
    print(
        json.dumps(
            {"cases": args.cases, "draws": args.draws, "targets": targets, "estimators": rows}, indent=1
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
