"""What a MiniMind model is: every number of it, checked, and how many parameters they make.

`llmconfig` describes the language model, `VLLMconfig` adds the pictures. The names are those of the guide
that users know (docs/minimind.md), hence the lower case.
"""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from quicksviewer.utils.registry import lookup

WIDTH_STEP = 64
"""The width of a feed-forward layer that nobody names is a multiple of this."""
PATCHES = 196
"""Patches of the picture that the defaults speak of: 224 pixels in squares of 16."""


@strict
class llmconfig(PreTrainedConfig):
    """The language model. Without `num_key_value_heads` there are as many as heads; without
    `intermediate_size` a feed-forward layer is 8/3 as wide as the model, rounded up. ValueError for numbers
    that do not fit each other."""

    model_type = "minimind"
    keys_to_ignore_at_inference = ["past_key_values", "aux_loss", "expert_counts"]
    attribute_map = {"attention_dropout": "dropout"}

    vocab_size: int = 30000
    hidden_size: int = 768
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    num_hidden_layers: int = 12
    intermediate_size: int | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    dropout: float | int = 0.1
    """Of embeddings, attention weights and what a layer adds."""
    tie_word_embeddings: bool = True
    rope_theta: float | int = 10000.0
    rope_parameters: dict[str, Any] | None = None
    """transformers' description of the rotary embedding, for more than a base (yarn, linear ...)."""
    use_moe: bool = False
    """Every layer's feed-forward part is a mixture of experts."""
    num_experts_per_token: int = 1
    n_routed_experts: int = 2
    n_shared_experts: int = 0
    """Experts that every token passes, beside those that its router chooses."""
    aux_loss_alpha: float | int = 0.0
    """Weight of the loss that keeps experts equally busy."""
    router_z_alpha: float | int = 0.0
    """Weight of the loss that keeps the router's logits small (ST-MoE, arXiv:2202.08906)."""
    norm_topk_prob: bool = False
    """The weights of a token's experts sum to 1."""
    seq_aux: bool = True
    """Experts are to be equally busy in every sequence, not only in the batch as a whole."""
    flash_attn: bool = True
    """Fused attention (torch's); off: plain. `attn_implementation` of `from_pretrained` goes before it."""
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 2
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = default_width(self.hidden_size)
        self._check()
        if self.rope_parameters and "rope_theta" in self.rope_parameters:
            self.rope_theta = self.rope_parameters["rope_theta"]
        if not self.flash_attn and kwargs.get("attn_implementation") is None:
            kwargs["attn_implementation"] = "eager"
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
        for name in (*sizes, "num_key_value_heads", "max_position_embeddings", "n_routed_experts"):
            _refuse_unless(getattr(self, name) >= 1, f"{name} is at least 1, got {getattr(self, name)}")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        _refuse_unless(
            self.hidden_size % (2 * heads) == 0,
            f"hidden_size {self.hidden_size} must be a multiple of 2 x {heads} attention heads",
        )
        _refuse_unless(heads % kv_heads == 0, f"{kv_heads} key/value heads do not divide {heads} heads")
        lookup(ACT2FN, self.hidden_act, "activation (hidden_act)")
        chosen, experts = self.num_experts_per_token, self.n_routed_experts
        _refuse_unless(
            not self.use_moe or 1 <= chosen <= experts,
            f"num_experts_per_token {chosen} must lie between 1 and n_routed_experts {experts}",
        )
        _refuse_unless(0 <= self.dropout < 1, f"dropout lies in [0, 1), got {self.dropout}")
        for name in ("n_shared_experts", "aux_loss_alpha", "router_z_alpha"):
            _refuse_unless(getattr(self, name) >= 0, f"{name} is not negative, got {getattr(self, name)}")

    @property
    def head_width(self) -> int:
        """Channels of an attention head."""
        return self.hidden_size // self.num_attention_heads

    def num_params(self) -> int:
        """Parameters of the language model, a tied embedding once."""
        return self._count(self.n_routed_experts)

    def num_active_params(self) -> int:
        """Parameters that one token meets: of the routed experts only those that its router chooses."""
        return self._count(self.num_experts_per_token)

    def _count(self, routed: int) -> int:
        width = self.hidden_size
        attention = 2 * width * width + 2 * width * self.num_key_value_heads * self.head_width
        feed_forward = 3 * width * self.intermediate_size
        if self.use_moe:
            router = width * self.n_routed_experts
            feed_forward = feed_forward * (routed + self.n_shared_experts) + router
        tables = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        return tables + self.num_hidden_layers * (attention + feed_forward + 2 * width) + width


@strict
class VLLMconfig(llmconfig):
    """The language model and how pictures enter it.

    A picture stands in the text as a run of one id, as long as the picture has patches. A run of the default
    length follows the vision tower that is loaded; another length that disagrees with it is an error.
    """

    model_type = "minimind_vlm"

    image_special_token: str = "@" * PATCHES
    image_ids: list[int] = field(default_factory=lambda: [34] * PATCHES)
    ve_hidden_size: int = 768
    """Width of the vision tower's patches."""
    vision_config: dict[str, Any] | None = None
    """The tower's own configuration, with its model_type; None: no tower has been loaded."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _refuse_unless(
            len(set(self.image_ids)) == 1 and self.image_ids[0] >= 0,
            f"image_ids must repeat one id, got {sorted(set(self.image_ids))[:4]}",
        )
        _refuse_unless(self.ve_hidden_size >= 1, f"ve_hidden_size is at least 1, got {self.ve_hidden_size}")

    @classmethod
    def of(cls, params: "llmconfig | None") -> "VLLMconfig":
        """The configuration itself, the default one for None, and for another class (users may write theirs
        on top of `llmconfig`) one with its values."""
        if params is None or isinstance(params, cls):
            return cls() if params is None else params
        known = {name for kind in cls.__mro__ for name in getattr(kind, "__annotations__", {})}
        return cls(**{name: value for name, value in params.to_dict().items() if name in known})

    def num_projector_params(self) -> int:
        """Parameters between the tower and the language model."""
        return (self.ve_hidden_size + 1) * self.hidden_size

    def fit_tower(self, vision_config: dict[str, Any], patches: int, width: int) -> None:
        """Take over what a loaded tower is. ValueError when a run of another than the default length was
        asked for and the tower has not that many patches."""
        length = len(self.image_ids)
        if length not in (patches, PATCHES):
            raise ValueError(
                f"image_ids has {length} ids, the vision tower gives {patches} tokens per picture; "
                f"leave image_ids and image_special_token out, or give {patches}"
            )
        if length != patches:
            self.place_pictures(self.image_ids[0], self.image_special_token[:1], patches)
        self.vision_config, self.ve_hidden_size = vision_config, width

    def place_pictures(self, token_id: int, token: str, patches: int) -> None:
        """From now on a picture is `patches` times this token."""
        self.image_ids, self.image_special_token = [token_id] * patches, token * patches


def default_width(hidden_size: int) -> int:
    """Width of a feed-forward layer that nobody names: 8/3 of the model's, rounded up to WIDTH_STEP."""
    return WIDTH_STEP * -(-int(8 * hidden_size / 3) // WIDTH_STEP)


def _refuse_unless(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


PRESETS: dict[str, dict[str, Any]] = {
    "debug": dict(
        vocab_size=260,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=128,
        max_position_embeddings=512,
        dropout=0.0,
    ),
    "tiny": dict(
        vocab_size=10000,
        hidden_size=256,
        num_attention_heads=4,
        num_hidden_layers=6,
        intermediate_size=512,
        max_position_embeddings=1024,
    ),
    "small": dict(
        vocab_size=30000,
        hidden_size=768,
        num_attention_heads=12,
        num_hidden_layers=12,
        intermediate_size=3072,
        max_position_embeddings=2048,
    ),
    "medium": dict(
        vocab_size=50000,
        hidden_size=1024,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_hidden_layers=24,
        intermediate_size=4096,
        max_position_embeddings=4096,
    ),
    "large_moe": dict(
        vocab_size=100000,
        hidden_size=1536,
        num_attention_heads=24,
        num_key_value_heads=12,
        num_hidden_layers=32,
        use_moe=True,
        num_experts_per_token=2,
        n_routed_experts=16,
        n_shared_experts=2,
        aux_loss_alpha=0.01,
        max_position_embeddings=8192,
    ),
}
"""Name of a size -> what differs from the defaults. `debug` runs in a blink on one core."""


def preset(name: str, kind: type[llmconfig] = VLLMconfig, **changes) -> llmconfig:
    """The configuration of that name, with changes; `kind` llmconfig for the language model alone. ValueError
    for a name that is not there."""
    return kind(**{**lookup(PRESETS, name, "preset"), **changes})


def get_model_configs() -> dict[str, VLLMconfig]:
    """The published sizes: tiny, small, medium, large_moe."""
    return {name: preset(name) for name in PRESETS if name != "debug"}
