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
    """(sum N,) float32: 1 on the first frame of a cube, else 0; with the gradient of the gate."""
    gate_logits: Tensor | None
    """(G, 2) float32: stay, cut; of the frames 1..N-1 of all videos. None without a gate or such frames."""

    @classmethod
    def from_mask(cls, mask_N: Tensor, cubes: list[int], gate_logits: Tensor | None = None) -> "Cuts":
        """Cuts before the frames where the mask is 1; `cubes` must say how many those are."""
        opens_N = (mask_N.detach() > 0.5).long()
        first_frame_C = opens_N.argsort(descending=True, stable=True)[: sum(cubes)]
        return cls(opens_N.cumsum(0) - 1, first_frame_C, cubes, mask_N, gate_logits)


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

    def centre(self, values_G: Tensor) -> Tensor:
        """Values of the gated frames less their mean over the video: (G,)."""
        total_V = values_G.new_zeros(len(self.starts_V)).index_add(0, self.video_G, values_G)
        return values_G - (total_V / (self.lengths_V - 1))[self.video_G]


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
        raise NotImplementedError
