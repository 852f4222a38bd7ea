"""From scores of frames to cuts: the best k of every video, moved where cubes would be too short or too long.

Letters: V videos, T gated frames of the longest video (its frames less one), C cubes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def top_k(score_VT: Tensor, k_V: Tensor) -> Tensor:
    """True on the k best of every row, with its own k; among equals the earlier wins. (V, T) bool."""
    order_VT = score_VT.argsort(dim=1, descending=True, stable=True)
    place_T = torch.arange(score_VT.shape[1], device=score_VT.device)
    rank_VT = torch.empty_like(order_VT).scatter_(1, order_VT, place_T.expand_as(order_VT))
    return rank_VT < k_V[:, None]


def repair_lengths(
    cut_VT: Tensor, frames_V: Tensor, cubes_V: Tensor, most: int, limits: tuple[int, int]
) -> Tensor:
    """Move cuts (frame t + 1 where column t is true) until all cubes keep limits (shortest, longest): (V, T).

    Positions are first clamped to what is possible. Then position k becomes the maximum over j of position j
    plus the least way from j to k: (k - j) x shortest forwards, -(j - k) x longest backwards. That is the
    earliest choice at or after the given one that keeps both limits; cuts that keep them stay. `most` is the
    largest number of cubes of a video. Needs shortest x cubes <= frames <= longest x cubes.
    """
    shortest, longest = limits
    num_places = cut_VT.shape[1]
    # cut k opens cube k: cut 0 is before frame 0, and the one after a row's last cube is its end
    index_C = torch.arange(most + 1, device=cut_VT.device)
    places_VT = torch.arange(1, num_places + 1, device=cut_VT.device).where(cut_VT, num_places + 1)
    position_VC = F.pad(places_VT.sort(dim=1).values[:, : most - 1], (1, 1))
    left_VC = cubes_V[:, None] - index_C
    frames_V1 = frames_V[:, None]
    lowest = torch.maximum(index_C * shortest, frames_V1 - left_VC * longest)
    highest = torch.minimum(index_C * longest, frames_V1 - left_VC * shortest)
    # beyond a row's own end the places go on in steps of `shortest`, which binds nothing before them
    position_VC = torch.minimum(torch.maximum(position_VC, lowest), highest)
    position_VC = torch.where(left_VC > 0, position_VC, frames_V1 - left_VC * shortest)
    forwards = (position_VC - index_C * shortest).cummax(dim=1).values + index_C * shortest
    backwards = (position_VC - index_C * longest).flip(1).cummax(dim=1).values.flip(1) + index_C * longest
    position_VC = torch.maximum(forwards, backwards)
    inner = (index_C > 0) & (left_VC > 0)
    column = torch.where(inner, position_VC - 1, num_places)
    return torch.zeros_like(F.pad(cut_VT, (0, 1))).scatter_(1, column, True)[:, :num_places]
