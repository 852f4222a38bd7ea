"""The parts of a layer: norm, rotary positions, grouped-query attention with a cache, feed-forward.

Letters: B rows, T tokens, H heads of queries, G heads of keys and values, W width of a head, D of the model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quicksviewer.minimind.config import llmconfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the division in float32 (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Angles by which queries and keys are turned at each position (RoPE, arXiv:2104.09864).

    The frequencies are in no checkpoint; transformers fills them by `compute_default_rope_parameters` when it
    has built a model without memory.
    """

    def __init__(self, config: llmconfig):
        super().__init__()
        self.config, self.rope_type = config, config.rope_parameters["rope_type"]
        compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        frequencies, self.scaling = compute(config)
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: llmconfig, device=None, **_) -> tuple[Tensor, float]:
        """Frequencies theta^(-2i/W), and 1: nothing is scaled."""
        even = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device)
        return config.rope_parameters["rope_theta"] ** -(even / config.head_width), 1.0

    @torch.no_grad()
    def forward(self, position_ids_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine for every position: (B, 1, T, W) each."""
        angles_BTw = position_ids_BT[..., None].float() * self.inv_freq.float()
        angles_B1TW = torch.cat([angles_BTw, angles_BTw], dim=-1)[:, None]
        return tuple((turn(angles_B1TW) * self.scaling).to(dtype) for turn in (torch.cos, torch.sin))


def rotate(x_BHTW: Tensor, cos_B1TW: Tensor, sin_B1TW: Tensor) -> Tensor:
    """Turn the pairs (i, i + W/2) of every head."""
    first, second = x_BHTW.chunk(2, dim=-1)
    return x_BHTW * cos_B1TW + torch.cat([-second, first], dim=-1) * sin_B1TW


def plain_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attention as its formula, for the name `eager`: (B, T, H, W) and the weights (B, H, T, T).

    `attention_mask` is added to the scores.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    read_BHTW = F.dropout(weights, p=dropout, training=module.training) @ value
    return read_BHTW.transpose(1, 2), weights


class Attention(nn.Module):
    """Heads of queries that share fewer heads of keys and values (GQA, arXiv:2305.13245).

    How it is computed is a name of transformers' attention interface: eager, sdpa, flash_attention_2 ...
    """

    is_causal = True

    def __init__(self, config: llmconfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.head_width
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        width, kv_width = config.hidden_size, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        turns: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """What every token reads (B, T, D), and the attention weights where the implementation has them."""
        q, k, v = (self._heads(project(x_BTD)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *turns), rotate(k, *turns)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        name = self.config._attn_implementation
        attend = plain_attention if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        dropout = self.config.dropout if self.training else 0.0
        scaling = self.head_dim**-0.5
        read, weights = attend(self, q, k, v, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return self.o_proj(read.reshape(x_BTD.shape)), weights

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """down(act(gate x) * up x) (SwiGLU, arXiv:2002.05202)."""

    def __init__(self, config: llmconfig, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
