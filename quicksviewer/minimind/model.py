"""The language model: embedding, layers, head; as any model of transformers it saves, loads and generates.

Letters: B rows, T tokens, D width, L layers, S sequences, E experts, C columns of `moe.sum_by_sequence`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from quicksviewer.minimind.config import llmconfig
from quicksviewer.minimind.layers import Attention, FeedForward, RMSNorm, RotaryEmbedding
from quicksviewer.minimind.moe import (
    Experts,
    MixtureOfExperts,
    Router,
    Sequences,
    router_loss,
    sum_by_sequence,
)


@dataclass
class MiniMindModelOutput(BaseModelOutputWithPast):
    """Hidden states, and of a mixture of experts: aux_loss, a scalar that is 0 outside of training;
    expert_counts (L, E), how often each expert was chosen by tokens that are no padding, or None."""

    aux_loss: Tensor | None = None
    expert_counts: Tensor | None = None


@dataclass
class MiniMindOutput(CausalLMOutputWithPast):
    """loss is that of the tokens alone; aux_loss, always a tensor, is added by whoever trains. See
    MiniMindModelOutput."""

    aux_loss: Tensor | None = None
    expert_counts: Tensor | None = None


class MiniMindBlock(GradientCheckpointingLayer):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, config: llmconfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.use_moe = config.use_moe
        self.mlp = MixtureOfExperts(config) if self.use_moe else FeedForward(config, config.intermediate_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, sequences: Sequences | None = None, **kwargs):
        """(B, T, D), the attention weights or None, and the router's sums (S, C) if sequences are given."""
        read_BTD, weights = self.self_attn(self.input_layernorm(x_BTD), **kwargs)
        x_BTD = x_BTD + self.dropout(read_BTD)
        made_BTD, sums = self.mlp(self.post_attention_layernorm(x_BTD)), None
        if self.use_moe:
            made_BTD, routing = made_BTD
            sums = None if sequences is None else sum_by_sequence(routing, sequences)
        return x_BTD + self.dropout(made_BTD), weights, sums


class MiniMindPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of both classes below."""

    config_class = llmconfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MiniMindBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """transformers' rule, and for experts and routers, which are no linear layers, their own."""
        super()._init_weights(module)
        if isinstance(module, Experts):
            init.normal_(module.gate_up_proj, std=self.config.initializer_range)
            init.normal_(module.down_proj, std=self.config.initializer_range)
        elif isinstance(module, Router):
            init.kaiming_uniform_(module.weight, a=5**0.5)


class MiniMindModel(MiniMindPreTrainedModel):
    """Embedding, layers and the last norm."""

    def __init__(self, config: llmconfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(MiniMindBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | list | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_expert_counts: bool = False,
        sequences: Sequences | None = None,
        add_up: Callable[[Tensor], Tensor] | None = None,
        **kwargs,
    ) -> MiniMindModelOutput:
        """As any language model of transformers. kwargs go to the attention.

        output_expert_counts: count the choices of experts outside of training, too. sequences: of the
        tokens; by default a row is one, and padding is what a mask of two axes leaves out. add_up: the sum
        over processes that hold parts of the same rows.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(past_key_values, use_cache)
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(embeds.shape[1], device=embeds.device)[None] + seen
        is_counted = self.config.use_moe and (self.training or output_expert_counts)
        shared = {
            **kwargs,
            "attention_mask": self._mask(embeds, attention_mask, cache, position_ids),
            "past_key_values": cache,
            "turns": self.rotary_emb(position_ids, embeds.dtype),
            "sequences": (sequences or _rows(embeds, attention_mask)) if is_counted else None,
        }
        x, states, weights, sums = self.dropout(embeds), [], [], []
        for layer in self.layers:
            states.append(x)
            x, *made = layer(x, **shared)
            weights.append(made[0])
            sums.append(made[1])
        x = self.norm(x)
        return MiniMindModelOutput(
            last_hidden_state=x,
            past_key_values=cache,
            hidden_states=(*states, x) if self._wants(output_hidden_states, "hidden_states") else None,
            attentions=tuple(weights) if self._wants(output_attentions, "attentions") else None,
            **self._usage(x, sums, add_up),
        )

    def _wants(self, given: bool | None, what: str) -> bool:
        return getattr(self.config, f"output_{what}") if given is None else given

    def _cache(self, past, use_cache: bool | None) -> Cache | None:
        """transformers' cache, also from keys and values per layer; None where none is asked for."""
        if past is not None and not isinstance(past, Cache):
            past = DynamicCache(past, config=self.config)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        recomputed = self.training and any(layer.gradient_checkpointing for layer in self.layers)
        if past is None and use_cache and not recomputed:
            return DynamicCache(config=self.config)
        return past

    def _mask(self, embeds, mask, cache, position_ids):
        """The causal mask as the attention wants it; one that `generate` has prepared passes."""
        if isinstance(mask, dict):
            return mask["full_attention"]
        return create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=position_ids,
        )

    def _usage(self, x: Tensor, sums: list[Tensor | None], add_up) -> dict[str, Tensor | None]:
        """aux_loss and expert_counts of the routers' sums."""
        nothing = x.new_zeros((), dtype=torch.float32)
        if not sums or sums[0] is None:
            return {"aux_loss": nothing}
        sums_LSC = torch.stack(sums)
        sums_LSC = sums_LSC if add_up is None else add_up(sums_LSC)
        counts_LE = sums_LSC[..., : self.config.n_routed_experts].detach().sum(dim=1)
        weighs = self.training and (self.config.aux_loss_alpha or self.config.router_z_alpha)
        loss = router_loss(sums_LSC, self.config) if weighs else nothing
        return {"aux_loss": loss, "expert_counts": counts_LE}


def _rows(embeds: Tensor, mask) -> Sequences:
    """Every row is one sequence, without what a mask of two axes leaves out."""
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return Sequences.of(mask[:, -embeds.shape[1] :].long(), most=1)
    return Sequences.of(torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device), most=1)


class MiniMindForCausalLM(MiniMindPreTrainedModel, GenerationMixin):
    """The language model with its head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: llmconfig):
        super().__init__(config)
        self.model = MiniMindModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"  # else transformers looks for it in the name of the class
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | list | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> MiniMindOutput:
        """Logits (B, T, V), or of the last `logits_to_keep` tokens, or of those at the given places.

        labels (B, T): each token is to predict the next one; -100 is no target. kwargs: of `MiniMindModel`,
        of the attention, and (num_items_in_batch, shift_labels) of transformers' loss.
        """
        loss_words = {name: kwargs.pop(name) for name in LOSS_WORDS if name in kwargs}
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **loss_words)
        return MiniMindOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            aux_loss=out.aux_loss,
            expert_counts=out.expert_counts,
        )


LOSS_WORDS = ("num_items_in_batch", "shift_labels")
"""Keyword arguments of the loss, which the layers have no use for."""
