"""Mixture of experts: every token passes the few feed-forward networks that its router chooses.

Tokens are sorted by expert, so that each expert is two matrix products over a segment. Nothing is dropped,
and training and evaluation run the same code. Letters: N tokens, E experts, K of them per token, A = N x K
assignments, S sequences, D width, I width of an expert.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from quicksviewer.minimind.config import llmconfig
from quicksviewer.minimind.layers import FeedForward

GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPED_ALIGNMENT = 16
"""What torch's grouped matrix product takes: these types, rows of a multiple of so many bytes."""


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
        order_A = experts_NK.flatten().argsort(stable=True)
        sizes_E = F.one_hot(experts_NK.flatten(), len(self.down_proj)).sum(dim=0)
        sorted_AD = x_ND.index_select(0, order_A // experts_NK.shape[1])
        gate_AI, up_AI = grouped_linear(sorted_AD, self.gate_up_proj, sizes_E).chunk(2, dim=-1)
        made_AD = grouped_linear(self.act(gate_AI) * up_AI, self.down_proj, sizes_E)
        place_A = torch.empty_like(order_A)
        place_A[order_A] = torch.arange(len(order_A), device=order_A.device)
        made_NKD = made_AD.index_select(0, place_A).unflatten(0, experts_NK.shape)
        return torch.einsum("nkd,nk->nd", made_NKD, weights_NK.to(made_NKD.dtype))


def grouped_linear(x_AD: Tensor, weight_EOD: Tensor, sizes_E: Tensor) -> Tensor:
    """Rows sorted by expert, `sizes_E` of each, times the weight of their expert: (A, O)."""
    device = x_AD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_AD, weight_EOD = x_AD.to(dtype), weight_EOD.to(dtype)
    if _fits_grouped(x_AD, weight_EOD):
        return F.grouped_mm(x_AD, weight_EOD.transpose(1, 2), offs=sizes_E.cumsum(0, dtype=torch.int32))
    segments = zip(x_AD.split(sizes_E.tolist()), weight_EOD.unbind(0), strict=True)
    return torch.cat([rows @ weight.T for rows, weight in segments])


def _fits_grouped(x_AD: Tensor, weight_EOD: Tensor) -> bool:
    """Whether one call of torch computes all experts; on the CPU its results are those of single products."""
    strides = (size * x_AD.element_size() % GROUPED_ALIGNMENT for size in weight_EOD.shape[1:])
    able = x_AD.device.type == "cpu" or (
        x_AD.device.type == "cuda" and torch.cuda.get_device_capability(x_AD.device) >= (8, 0)
    )
    return able and x_AD.dtype == weight_EOD.dtype and x_AD.dtype in GROUPED_DTYPES and not any(strides)


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
