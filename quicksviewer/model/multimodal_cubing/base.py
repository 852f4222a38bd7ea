"""What every way of cutting has in common: its result, and the frames of a batch by their indices.

Letters: V videos, N frames of all media (videos and images), C cubes, G frames with a gate (1..N-1 of every
video). Counts of frames and cubes are lists on the host, so that no shape ever waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from quicksviewer.model.config import CubingConfig
from quicksviewer.model.multimodal_cubing.choose import repair_lengths, top_k
from quicksviewer.model.multimodal_cubing.subsets import Subsets


@dataclass(frozen=True)
class Cuts:
    """Which frame belongs to which cube, over all media of a batch. An image is one cube."""

    cube_of_frame: Tensor
    """(sum N,) int64, counted over the whole batch."""
    first_frame: Tensor
    """(sum C,) int64: the frame that opens each cube."""
    cubes: list[int]
    """Cubes of each medium."""
    mask: Tensor
    """(sum N,) float32: 1 on the first frame of a cube, else 0; with the gradient of the gate. Weights of the
    thumbnail: `soft` has the probability of a cut there, in training."""
    gate_logits: Tensor | None
    """(G, 2) float32: stay, cut; of the frames 1..N-1 of all videos. None without a gate or such frames."""
    share: Tensor | None = None
    """(sum N, 3) float32: share of each frame in the cube before its own, in its own, in the one after. None:
    0, 1, 0 without a gradient, which is always so at inference."""
    confidence: Tensor | None = None
    """(sum C,) float32: how much of a cube is its own, the rest being the cube before. None: all of it."""
    ratio_loss: Tensor | None = None
    """A penalty that takes the place of the logits' norms; summed over gated frames. None: the norms."""
    broken: Tensor | None = None
    """How many pooled frames hold a NaN or an infinity; a number on the device, in training only."""

    @classmethod
    def from_mask(cls, mask_N: Tensor, cubes: list[int], *rest, opens_N: Tensor | None = None) -> "Cuts":
        """Cuts before the frames where the mask is 1; `cubes` must say how many those are.

        `opens_N` says where cuts are, for a mask that holds something else.
        """
        opens_N = ((mask_N.detach() if opens_N is None else opens_N) > 0.5).long()
        first_frame_C = opens_N.argsort(descending=True, stable=True)[: sum(cubes)]
        return cls(opens_N.cumsum(0) - 1, first_frame_C, cubes, mask_N, *(rest or [None]))

    def penalty(self) -> Tensor | None:
        """What the trainer adds to the loss, summed over gated frames; None without a gate."""
        if self.ratio_loss is not None:
            return self.ratio_loss
        return None if self.gate_logits is None else self.gate_logits.norm(dim=-1).sum()


def to_device(values: Sequence[int], device: torch.device) -> Tensor:
    """Host integers as an int64 tensor, without waiting for the device."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


@dataclass(frozen=True)
class GatedFrames:
    """Indices of the frames that have a gate: all but the first of every video."""

    starts_V: Tensor
    """The first frame of each video with two frames or more."""
    lengths_V: Tensor
    """Its frames."""
    video_G: Tensor
    """The video of each gated frame."""
    place_G: Tensor
    """Its place in the video less one: 0..N-2."""
    frame_G: Tensor
    """Its place among all frames of the batch."""
    longest: int
    """Gated frames of the longest video."""

    @classmethod
    def of(cls, frames: list[int], is_video: list[bool], device: torch.device) -> "GatedFrames | None":
        """The gated frames of a batch, or None when there is none."""
        starts = accumulate([0, *frames[:-1]])
        videos = [(s, n) for s, n, v in zip(starts, frames, is_video, strict=True) if v and n > 1]
        if not videos:
            return None
        starts_V = to_device([s for s, _ in videos], device)
        lengths = [n for _, n in videos]
        gated_V = to_device([n - 1 for n in lengths], device)
        total = sum(lengths) - len(lengths)
        video_G = torch.arange(len(videos), device=device).repeat_interleave(gated_V, output_size=total)
        place_G = torch.arange(total, device=device) - (gated_V.cumsum(0) - gated_V)[video_G]
        frame_G = starts_V[video_G] + 1 + place_G
        return cls(starts_V, gated_V + 1, video_G, place_G, frame_G, max(lengths) - 1)

    def pad(self, features_ND: Tensor) -> Tensor:
        """Frames of the videos side by side: (V, longest + 1, D); a short video repeats its last frame."""
        place_N = torch.arange(self.longest + 1, device=features_ND.device)
        return features_ND[self.starts_V[:, None] + torch.minimum(place_N, self.lengths_V[:, None] - 1)]

    def mask(self, values_G: Tensor, num_frames: int) -> Tensor:
        """Values of the gated frames among those of all, which are 1: (num_frames,)."""
        return values_G.new_ones(num_frames).index_put((self.frame_G,), values_G)

    def rows(self, values_G: Tensor, fill: float) -> Tensor:
        """Values of the gated frames, a row for each video: (V, longest)."""
        return values_G.new_full((len(self.starts_V), self.longest), fill).index_put(
            (self.video_G, self.place_G), values_G
        )

    def total(self, values_G: Tensor) -> Tensor:
        """Sum of the values of the gated frames of each video: (V,)."""
        return values_G.new_zeros(len(self.starts_V)).index_add(0, self.video_G, values_G)

    def centre(self, values_G: Tensor) -> Tensor:
        """Values of the gated frames less their mean over the video: (G,)."""
        return values_G - (self.total(values_G) / (self.lengths_V - 1))[self.video_G]


@dataclass(frozen=True)
class Draw:
    """One choice of cuts, over the gated frames of all videos."""

    hard_G: Tensor
    """1 where a cube opens, else 0."""
    soft_G: Tensor
    """What stands for it in the backward pass; its value does not matter."""
    odds_G: Tensor
    """Log odds of a cut, over the temperature."""
    subsets: Subsets | None = None
    """The distribution that it came from, where that is one over exactly k cuts."""


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of one with the gradient of the other."""
    return (hard - soft).detach() + soft


def broken_frames(pooled_ND: Tensor) -> Tensor:
    """How many frames hold a value that is no number: a scalar on the device."""
    return (~pooled_ND.detach().isfinite()).any(dim=1).sum()


def refuse_broken(pooled_ND: Tensor, frames: list[int], is_video: list[bool]) -> None:
    """ValueError that names the first frame with a value that is no number. Waits for the device."""
    bad_N = (~pooled_ND.isfinite()).any(dim=1)
    if bool(bad_N.any()):
        place, medium = int(bad_N.nonzero()[0]), 0
        while place >= frames[medium]:
            place, medium = place - frames[medium], medium + 1
        kind = "video" if is_video[medium] else "image"
        raise ValueError(
            f"{kind} {medium + 1} of {len(frames)} in the batch: the features of its frame {place + 1} of "
            f"{frames[medium]} are no finite numbers; look at its pixels, the tower's weights and their type"
        )


class Cubing(nn.Module):
    """A way to cut videos. Subclasses decide in `forward` where; how often is the config's matter."""

    def __init__(self, config: CubingConfig, vision_width: int):
        super().__init__()
        self.config = config

    def num_cubes(self, num_frames: int) -> int:
        """Cubes of a video of that many frames."""
        return self.config.num_cubes(num_frames)

    def cubes_of(self, frames: list[int], is_video: list[bool]) -> list[int]:
        """Cubes of each medium of a batch. ValueError for an image of more than one frame."""
        for num_frames, video in zip(frames, is_video, strict=True):
            if num_frames != 1 and not video:
                raise ValueError(f"an image is one frame, got {num_frames}")
        return [self.num_cubes(n) if v else 1 for n, v in zip(frames, is_video, strict=True)]

    def forward(
        self,
        pooled_ND: Tensor,
        frames: list[int],
        is_video: list[bool],
        noise_weight: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Cuts:
        """Cut the media of a batch, given the pooled frames (sum N, D) float32 and how many each medium has.

        The noise (training only) is drawn from `generator`, which lives on the device of the frames.
        """
        cubes = self.cubes_of(frames, is_video)
        gated = GatedFrames.of(frames, is_video, pooled_ND.device)
        if gated is None:
            return Cuts.from_mask(torch.ones(sum(frames), device=pooled_ND.device), cubes)
        cuts = [k - 1 for k, n, v in zip(cubes, frames, is_video, strict=True) if v and n > 1]
        with torch.autocast(pooled_ND.device.type, enabled=False):
            return self.cut(pooled_ND.float(), gated, cubes, cuts, noise_weight, generator)

    def cut(
        self,
        pooled_ND: Tensor,
        gated: GatedFrames,
        cubes: list[int],
        cuts: list[int],
        noise_weight: float,
        generator: torch.Generator | None,
    ) -> Cuts:
        """What `forward` does where a frame can open a cube: `cuts` of them in each video of two frames or
        more, `cubes` of each medium. In float32, autocast off."""
        raise NotImplementedError

    def choose(self, score_G: Tensor, gated: GatedFrames, cuts: list[int]) -> Tensor:
        """The best `cuts` gated frames of each video, within the limits of cube lengths: (G,) bool.

        Log odds sort like probabilities, but do not tie where those round to 1.
        """
        cuts_V = to_device(cuts, score_G.device)
        cut_VT = top_k(gated.rows(score_G, -torch.inf), cuts_V)
        shortest, longest = self.config.min_cube_frames, self.config.max_cube_frames
        if shortest > 1 or longest is not None:
            limits = (shortest, longest or gated.longest + 1)
            cut_VT = repair_lengths(cut_VT, gated.lengths_V, cuts_V + 1, max(cuts) + 1, limits)
        return cut_VT[gated.video_G, gated.place_G]
