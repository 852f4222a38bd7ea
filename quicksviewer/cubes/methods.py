"""Every way to cut one video, by name: with a model's gate, without parameters, or from the file alone."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing import Cubing, build_cubing
from quicksviewer.model.multimodal_cubing.base import GatedFrames
from quicksviewer.utils.colours import colour_changes
from quicksviewer.utils.packets import packet_scores, read_packets
from quicksviewer.utils.registry import lookup

SIDE = 12
"""Pixels of a side of the pictures that stand for features when there is no model."""


@dataclass(frozen=True)
class Clip:
    """One video as the methods see it."""

    path: str
    times: Tensor
    """(N,) seconds."""
    pixels: Tensor
    """uint8 (N, 3, S, S)."""
    features: Tensor
    """float32 (N, D): pooled frames of a tower, or small pictures."""
    config: CubingConfig
    """How many cubes, and how long they may be."""
    trained: Cubing | None = field(default=None, repr=False)
    """The cubing of a model, for the method of its kind."""

    @property
    def num_cubes(self) -> int:
        return self.config.num_cubes(len(self.pixels))


def small_pictures(pixels_N3SS: Tensor) -> Tensor:
    """Frames as vectors of SIDE x SIDE pixels, 0 to 1: (N, 3 SIDE^2) float32."""
    return F.adaptive_avg_pool2d(pixels_N3SS.float() / 255, SIDE).flatten(1)


def by_cubing(kind: str) -> Callable[[Clip], list[int]]:
    """A row of the model's table of cubings: the model's own if it is of that kind, else an untrained one."""

    def cut(clip: Clip) -> list[int]:
        cubing = clip.trained
        if cubing is None or clip.config.kind != kind:
            torch.manual_seed(0)
            cubing = build_cubing(replace(clip.config, kind=kind), clip.features.shape[1])
        with torch.no_grad():
            features = clip.features.to(next((p.device for p in cubing.parameters()), "cpu"))
            cuts = cubing.eval()(features, [len(features)], [True])
        return cuts.first_frame.tolist()[1:]

    return cut


def best_scores(clip: Clip, score_N: Tensor) -> list[int]:
    """The best-scored frames, as many as the plan has cuts, within the limits of cube lengths."""
    count = len(score_N)
    if count == 1:
        return []
    gated = GatedFrames.of([count], [True], torch.device("cpu"))
    chosen = Cubing(clip.config, 1).choose(score_N[1:], gated, [clip.num_cubes - 1])
    return (chosen.nonzero().flatten() + 1).tolist()


def by_codec(clip: Clip) -> list[int]:
    """Where the encoder spent most; nothing is decoded."""
    score = packet_scores(read_packets(clip.path), clip.times.tolist())
    return best_scores(clip, torch.from_numpy(np.nan_to_num(score, neginf=-1e9)).float())


def by_colours(clip: Clip) -> list[int]:
    """Where the colours of the picture change most, as shot detectors look at it."""
    return best_scores(clip, colour_changes(clip.pixels))


METHODS: dict[str, Callable[[Clip], list[int]]] = {
    **{kind: by_cubing(kind) for kind in ("momentum", "cumulative", "reinmax", "subset", "soft", "router")},
    **{kind: by_cubing(kind) for kind in ("uniform", "change_point", "optimal")},
    "codec": by_codec,
    "colours": by_colours,
}
"""Name -> first frames of all cubes but the first."""


def cut_with(name: str, clip: Clip) -> list[int]:
    """Cuts of a method. ValueError for an unknown one."""
    return lookup(METHODS, name, "way to cut")(clip)
