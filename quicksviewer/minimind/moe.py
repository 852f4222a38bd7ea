"""Mixture of experts: every token passes the few feed-forward networks that its router chooses.

Nothing is dropped, and training and evaluation run the same code (grouped.py). Letters: N tokens, E experts,
K of them per token, S sequences, L layers, B rows, T tokens of a row, D width, I width of an expert.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from quicksviewer.minimind.config import llmconfig
from quicksviewer.minimind.grouped import PassExperts
from quicksviewer.minimind.layers import FeedForward


@dataclass(frozen=True)
class Routing:
    """What a router decides: weights and experts of every token (N, K); probabilities (N, E) and log-sum-exp
    of the logits (N,), both float32."""

    weights: Tensor
    experts: Tensor
    probabilities: Tensor
    log_sum: Tensor


class Router(nn.Module):
    """A linear layer and a softmax in float32; the K likeliest experts win."""

    def __init__(self, config: llmconfig):
        super().__init__()
        self.chosen = config.num_experts_per_token
        self.normalise = config.norm_topk_prob and self.chosen > 1  # of one expert it would have no gradient
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, x_ND: Tensor) -> Routing:
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = x_ND.float() @ self.weight.float().T
        probabilities_NE = logits_NE.softmax(dim=-1)
        weights_NK, experts_NK = probabilities_NE.topk(self.chosen, dim=-1)
        if self.normalise:
            weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
        return Routing(weights_NK, experts_NK, probabilities_NE, logits_NE.logsumexp(dim=-1))


class Experts(nn.Module):
    """All experts of a layer as two tensors, so that whichever are chosen, each weight has a gradient."""

    def __init__(self, config: llmconfig):
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor) -> Tensor:
        """The weighted sum of what its experts make of each token: (N, D)."""
        factors = [x_ND, weights_NK, self.gate_up_proj, self.down_proj]
        device = x_ND.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            factors = [factor.to(dtype) for factor in factors]
        with torch.autocast(device, enabled=False):
            return PassExperts.apply(*factors, experts_NK, self.act)


class MixtureOfExperts(nn.Module):
    """What takes the place of a feed-forward layer: routed experts, and shared ones that see every token.

    Several shared experts are one that is as wide as all of them, which is the same sum.
    """

    def __init__(self, config: llmconfig):
        super().__init__()
        self.router, self.experts = Router(config), Experts(config)
        shared = config.n_shared_experts * config.intermediate_size
        self.shared_experts = FeedForward(config, shared) if shared else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        x_ND = x_BTD.flatten(0, -2)
        routing = self.router(x_ND)
        made_BTD = self.experts(x_ND, routing.weights, routing.experts).view_as(x_BTD)
        if self.shared_experts is not None:
            made_BTD = made_BTD + self.shared_experts(x_BTD)
        return made_BTD, routing


# --- how evenly experts are used ---


@dataclass(frozen=True)
class Sequences:
    """Which sequence each token belongs to: number_BT (B, T) in 0..count; `count` stands for padding."""

    number_BT: Tensor
    count: int

    @classmethod
    def of(cls, ids_BT: Tensor, most: int | None = None) -> "Sequences":
        """From ids per row: 0 is padding, equal numbers of a row are one sequence. `most`: the largest id;
        without it, it is read from the device."""
        most = int(ids_BT.max()) if most is None else most
        rows = len(ids_BT)
        first_B1 = most * torch.arange(rows, device=ids_BT.device)[:, None]
        return cls(torch.where(ids_BT > 0, first_B1 + ids_BT - 1, rows * most), rows * most)

    def at(self, places: Tensor) -> "Sequences":
        """Of the tokens at these places of every row; places beyond the rows are padding."""
        more = max(int(places.max()) + 1 - self.number_BT.shape[1], 0)
        return Sequences(F.pad(self.number_BT, (0, more), value=self.count)[:, places], self.count)


def sum_by_sequence(routing: Routing, sequences: Sequences) -> Tensor:
    """What a router did in each sequence, as sums that can be added up over processes: (S, 2E + 1) float32.

    The columns: how often each expert was chosen, its summed probability, the summed square of log-sum-exp.
    """
    experts = routing.probabilities.shape[-1]
    chosen_NE = F.one_hot(routing.experts, experts).sum(dim=1).float()
    columns = [chosen_NE, routing.probabilities, routing.log_sum.square()[:, None]]
    sums = routing.probabilities.new_zeros(sequences.count + 1, 2 * experts + 1)
    return sums.index_add(0, sequences.number_BT.flatten(), torch.cat(columns, dim=-1))[:-1]


def router_loss(sums_LSC: Tensor, config: llmconfig) -> Tensor:
    """The balance loss of all layers and, where it has a weight, that of the logits' size: a scalar.

    Of a sequence: E x (share of its choices that fell on each expert) . (mean probability of each expert),
    times alpha. It is alpha where all experts are equally busy and nears E x alpha where one takes all. The
    mean over sequences, or (seq_aux off) of the batch taken as one sequence; the sum over layers.
    """
    experts = config.n_routed_experts
    sums_LSC = sums_LSC if config.seq_aux else sums_LSC.sum(dim=1, keepdim=True)
    chosen_LSE, probability_LSE, square_LS1 = sums_LSC.split([experts, experts, 1], dim=-1)
    tokens_LS1 = chosen_LSE.sum(dim=-1, keepdim=True) / config.num_experts_per_token
    share_LSE = chosen_LSE / (tokens_LS1 * config.num_experts_per_token).clamp(min=1)
    mean_LSE = probability_LSE / tokens_LS1.clamp(min=1)
    balance_LS = experts * (share_LSE * mean_LSE).sum(dim=-1)
    size_LS = (square_LS1 / tokens_LS1.clamp(min=1))[..., 0]
    each_LS = config.aux_loss_alpha * balance_LS + config.router_z_alpha * size_LS
    return each_LS.sum() / (tokens_LS1[0] > 0).sum().clamp(min=1)
