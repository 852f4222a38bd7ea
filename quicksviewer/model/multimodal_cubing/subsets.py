"""Exactly k cuts: probabilities of subsets of fixed size, by recursion in log space.

A subset S of the T gated frames of a video has a probability proportional to the product of its odds w_t. The
sum of these products over all subsets of j of the first t frames, the elementary symmetric polynomial, obeys
E_j(t) = E_j(t - 1) + w_t E_{j-1}(t - 1), so E_j is a running sum of w_t E_{j-1}(t - 1): one pass over j, each
step parallel over frames. Time and memory grow with T times k.

Letters: V videos, T gated frames of the longest, K the largest number of cuts of a video.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e30
"""A log weight of zero whose gradients stay finite."""


def log_prefix_sums(odds_VT: Tensor, most: int) -> Tensor:
    """log E_j of the first t frames: (V, T + 1, most + 1), for t = 0..T and j = 0..most."""
    row = odds_VT.new_zeros(len(odds_VT), odds_VT.shape[1] + 1)
    rows = [row]
    for _ in range(most):
        row = F.pad((odds_VT + row[:, :-1]).logcumsumexp(dim=1), (1, 0), value=NEVER).clamp_min(NEVER)
        rows.append(row)
    return torch.stack(rows, dim=2)


class Subsets:
    """The distribution over subsets of `cuts_V` frames of each row; beyond a row's end odds are NEVER."""

    def __init__(self, odds_VT: Tensor, cuts_V: Tensor, most: int):
        self.odds_VT, self.cuts_V, self.most = odds_VT, cuts_V, most
        self.before = log_prefix_sums(odds_VT, most)
        # of the frames t..T-1, with j cuts still to come
        self.after = log_prefix_sums(odds_VT.flip(1), most).flip(1)

    def _left(self, used: int) -> tuple[Tensor, Tensor]:
        """Cuts that remain when j + used are spent, as an index over j, and where there are any: (V, K)."""
        left_VK = self.cuts_V[:, None] - torch.arange(self.most + 1, device=self.cuts_V.device) - used
        return left_VK.clamp_min(0), left_VK >= 0

    def _total(self) -> Tensor:
        return self.before[:, -1].gather(1, self.cuts_V[:, None])

    def marginals(self) -> Tensor:
        """Probability that each frame is in the subset: (V, T)."""
        left_VK, possible_VK = self._left(1)
        after = self.after[:, 1:].gather(2, left_VK[:, None].expand(-1, self.odds_VT.shape[1], -1))
        terms = (self.before[:, :-1] + after).masked_fill(~possible_VK[:, None], NEVER)
        return (self.odds_VT + terms.logsumexp(dim=2) - self._total()).exp()

    def counts(self) -> Tensor:
        """Probability that j of the frames 0..t are in the subset: (V, T, most + 1)."""
        left_VK, possible_VK = self._left(0)
        after = self.after[:, 1:].gather(2, left_VK[:, None].expand(-1, self.odds_VT.shape[1], -1))
        terms = (self.before[:, 1:] + after).masked_fill(~possible_VK[:, None], NEVER)
        return (terms - self._total()[..., None]).exp()

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None) -> Tensor:
        """A subset of every row: (V, T) bool. The last cut first, then the one before it, each exactly."""
        V, T = self.odds_VT.shape
        place_T = torch.arange(T, device=self.odds_VT.device)
        end_V1, chosen = torch.full((V, 1), T, device=place_T.device), torch.zeros(V, T + 1, dtype=torch.bool)
        chosen = chosen.to(place_T.device)
        for spent in range(self.most):
            left_V = self.cuts_V - spent
            rest = (left_V - 1).clamp_min(0)[:, None, None].expand(V, T, 1)
            score_VT = self.odds_VT + self.before[:, :-1].gather(2, rest).squeeze(2)
            noise = torch.empty_like(score_VT).exponential_(generator=generator).clamp_min(1e-30).log()
            score_VT = (score_VT - noise).masked_fill(place_T >= end_V1, -torch.inf)
            end_V1 = torch.where(left_V[:, None] > 0, score_VT.argmax(dim=1, keepdim=True), end_V1)
            chosen.scatter_(1, torch.where(left_V[:, None] > 0, end_V1, T), True)
        return chosen[:, :T]
