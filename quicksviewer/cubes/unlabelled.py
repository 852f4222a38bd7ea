"""Gates that learn to cut from features alone: nobody says what a video shows or where it was cut.

What a cube says of its frames is their mean; what the thumbnail says of the video is the mean of the
frames that open a cube. The loss is how far both are from the frames, as squares: for a cube that is the
very error that `optimal` makes least. So the gate, which sees changes of neighbours only, learns to
guess cuts for which dynamic programming compares all frames of a video.
"""

import torch
from torch import Tensor

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing import Cubing, build_cubing
from quicksviewer.model.multimodal_resampler.base import mean_by_cube

CROP, CROPS = 48, 4
"""Frames of a piece of a video, and pieces of a step."""
RATE = 1e-5
"""Learning rate: of four, that with the least error on the half that gates learn from."""


def crops(films: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Pieces of videos, drawn by the length of these: each (CROP, D) or a whole shorter video."""
    lengths = torch.tensor([len(film) for film in films], dtype=torch.float32)
    chosen = lengths.multinomial(CROPS, replacement=True, generator=generator).tolist()
    pieces = []
    for index in chosen:
        last = max(len(films[index]) - CROP, 0)
        start = int(torch.randint(last + 1, (), generator=generator))
        pieces.append(films[index][start : start + CROP])
    return pieces


def loss_of(cubing: Cubing, pieces: list[Tensor], noise_weight: float, generator: torch.Generator) -> Tensor:
    """Mean squared distance of frames from their cubes, and of the videos' means from their thumbnails."""
    frames = [len(piece) for piece in pieces]
    all_ND = torch.cat(pieces)
    cuts = cubing(all_ND, frames, [True] * len(frames), noise_weight, generator)
    cubes_CD = mean_by_cube(all_ND, cuts.cube_of_frame, sum(cuts.cubes), cuts.share)
    loss = (cubes_CD[cuts.cube_of_frame] - all_ND).square().mean()
    parts = zip((cuts.mask[:, None] * all_ND).split(frames), pieces, cuts.cubes, strict=True)
    for weighted_ND, piece_ND, cubes in parts:
        loss = loss + (weighted_ND.sum(dim=0) / cubes - piece_ND.mean(dim=0)).square().mean() / len(frames)
    return loss + cubing.config.aux_weight * cuts.penalty() / (sum(frames) - len(frames))


def learn(config: CubingConfig, films: list[Tensor], steps: int, seed: int = 0) -> Cubing:
    """A gate of `config.kind` after so many steps on pieces of the videos' features (N, D), float32."""
    torch.manual_seed(seed)
    cubing = build_cubing(config, films[0].shape[1]).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(cubing.parameters(), RATE)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(cubing, crops(films, generator), config.noise_weight(step / steps), generator).backward()
        optimizer.step()
    return cubing.eval()
