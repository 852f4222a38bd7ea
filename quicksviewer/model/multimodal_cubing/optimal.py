"""The best possible cut: least squared distance of frames to the mean of their cube, by dynamic programming.

Letters: V videos, N frames of the longest, K cubes, D width. Needs memory for N x N costs of each video: a
yardstick and a teacher, not for films of 10,000 frames. float64, because costs are differences of sums.
"""

import torch
from torch import Tensor

from quicksviewer.model.multimodal_cubing.base import GatedFrames, to_device
from quicksviewer.model.multimodal_cubing.change_point import ScoredCubing


def span_costs(frames_VND: Tensor) -> Tensor:
    """Squared distance to their mean of the frames [i, j): (V, N + 1, N + 1) float64, infinite for j <= i."""
    centred = frames_VND.double()
    centred = centred - centred.mean(dim=1, keepdim=True)
    sums = torch.nn.functional.pad(centred.cumsum(dim=1), (0, 0, 1, 0))
    squares = torch.nn.functional.pad(centred.square().sum(dim=-1).cumsum(dim=1), (1, 0))
    gram = sums @ sums.transpose(1, 2)
    size = gram.diagonal(dim1=1, dim2=2)
    of_sum = size[:, None, :] + size[:, :, None] - 2 * gram
    place = torch.arange(gram.shape[1], device=gram.device)
    length = place - place[:, None]
    cost = squares[:, None, :] - squares[:, :, None] - of_sum / length.clamp_min(1)
    return cost.clamp_min(0).masked_fill(length <= 0, torch.inf)


def best_cuts(cost_VNN: Tensor, lengths_V: Tensor, cubes_V: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Starts of the cubes with the least total cost (V, most), and that cost (V,).

    `cost_VNN[v, i, j]` is the cost of a cube of the frames [i, j); `most` the largest of `cubes_V`. Starts
    beyond a video's own number of cubes are its length.
    """
    best_VN = torch.full_like(cost_VNN[:, 0], torch.inf)
    best_VN[:, 0] = 0
    tables, values = [], [best_VN]
    for _ in range(most):
        best_VN, came_VN = (best_VN[:, :, None] + cost_VNN).min(dim=1)
        tables.append(came_VN)
        values.append(best_VN)
    end_V1 = lengths_V[:, None]
    total_V = torch.stack(values, dim=1).gather(1, cubes_V[:, None, None].expand(-1, -1, best_VN.shape[1]))
    starts = []
    for cube in range(most - 1, -1, -1):
        came_V1 = tables[cube].gather(1, end_V1)
        end_V1 = torch.where(cubes_V[:, None] > cube, came_V1, end_V1)
        starts.append(end_V1)
    return torch.cat(starts[::-1], dim=1), total_V.squeeze(1).gather(1, lengths_V[:, None]).squeeze(1)


class OptimalCubing(ScoredCubing):
    """The exact optimum within the limits of cube lengths."""

    def cuts(self, pooled_ND: Tensor, gated: GatedFrames, cuts: list[int]) -> Tensor:
        """See `ScoredCubing.cuts`."""
        # what is no number is refused elsewhere; here every video still gets as many cubes as planned
        cost_VNN = span_costs(gated.pad(pooled_ND.nan_to_num()))
        place = torch.arange(cost_VNN.shape[1], device=cost_VNN.device)
        length = place - place[:, None]
        shortest, longest = self.config.min_cube_frames, self.config.max_cube_frames or cost_VNN.shape[1]
        cost_VNN = cost_VNN.masked_fill((length < shortest) | (length > longest), torch.inf)
        cubes_V = to_device(cuts, cost_VNN.device) + 1
        starts_VK, _ = best_cuts(cost_VNN, gated.lengths_V, cubes_V, max(cuts) + 1)
        inner = (torch.arange(max(cuts) + 1, device=place.device) < cubes_V[:, None]) & (starts_VK > 0)
        column = torch.where(inner, starts_VK - 1, gated.longest)
        chosen_VT = torch.zeros(len(cubes_V), gated.longest + 1, device=place.device, dtype=torch.bool)
        return chosen_VT.scatter_(1, column, True)[gated.video_G, gated.place_G]
