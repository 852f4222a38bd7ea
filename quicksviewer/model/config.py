"""The configuration of the vision side: every number of it, checked, saved with the checkpoint.

Defaults are the corrected behaviour; `published` gives that of the published model.
"""

import math
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

from quicksviewer.utils.config import build

TIME_CHARACTERS = "0123456789."
"""What a timestamp is written with; `time_token_ids` follow this order."""

MLP_KIND = re.compile(r"mlp([1-9]\d*)x_gelu")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _check_choices(config, **choices) -> None:
    """Refuse a value that is not among the choices of its Literal type."""
    for name, kinds in choices.items():
        value, allowed = getattr(config, name), get_args(kinds)
        _check(value in allowed, f"{type(config).__name__}.{name} is {value!r}, expected one of {allowed}")


TowerKind = Literal["siglip", "clip"]
CubingKind = Literal[
    "momentum", "cumulative", "reinmax", "subset", "soft", "router", "uniform", "change_point", "optimal"
]
ResamplerKind = Literal["perceiver", "spatial_pool", "identity"]
TimeUnit = Literal["seconds", "frames"]
ThumbnailPooling = Literal["grid", "runs"]
TimeStyle = Literal["fixed", "plain"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The vision transformer that turns pixels into patch tokens."""

    kind: TowerKind = "siglip"
    """Family of the transformer."""
    hf: dict[str, Any] = field(default_factory=dict)
    """Its transformers vision config; what is missing has the value that transformers gives it."""
    select_layer: int = -1
    """Which hidden state is handed on: -1 the last layer's, -2 the one before. Later layers are not built."""
    post_layernorm: bool = True
    """Normalise the patch tokens with the tower's last LayerNorm (published: no)."""
    grid: int | None = None
    """Resize the patch grid to grid x grid, bilinear (so400m: 27 -> 24); None keeps it."""
    frames_per_chunk: int = 32
    """Frames that run through the tower at once; changes memory, not results."""

    def __post_init__(self):
        _check_choices(self, kind=TowerKind)
        _check(
            self.select_layer < 0, f"select_layer counts from the end: -1 or less, got {self.select_layer}"
        )
        _check(self.grid is None or self.grid > 0, f"grid must be positive, got {self.grid}")
        _check(self.frames_per_chunk > 0, f"frames_per_chunk must be positive, got {self.frames_per_chunk}")

    @cached_property
    def vision(self):
        """The transformers config of the layers that are built. ValueError for a key it does not know."""
        # imported here because it takes seconds
        from transformers import CLIPVisionConfig, SiglipVisionConfig

        kind = {"siglip": SiglipVisionConfig, "clip": CLIPVisionConfig}[self.kind]
        unknown = sorted(set(self.hf) - set(kind().to_dict()) - {"torch_dtype", "_name_or_path"})
        _check(not unknown, f"{kind.__name__} has no field {', '.join(unknown)}")
        vision = kind(**{**self.hf, **({"vision_use_head": False} if self.kind == "siglip" else {})})
        layers = vision.num_hidden_layers + 1 + self.select_layer
        _check(
            layers >= 1,
            f"select_layer {self.select_layer} leaves no layer of {vision.num_hidden_layers}",
        )
        vision.num_hidden_layers = layers
        _check(isinstance(vision.image_size, int), f"towers see squares, got image_size {vision.image_size}")
        return vision

    @property
    def hidden_size(self) -> int:
        return self.vision.hidden_size

    @property
    def image_size(self) -> int:
        """Pixels along a side of the square that the tower sees."""
        return self.vision.image_size

    @property
    def native_grid(self) -> int:
        """Patches along a side, before resizing."""
        return self.vision.image_size // self.vision.patch_size

    @property
    def out_grid(self) -> int:
        """Patches along a side, as handed on."""
        return self.grid or self.native_grid

    @property
    def num_patches(self) -> int:
        return self.out_grid**2


@dataclass(frozen=True, kw_only=True)
class CubingConfig:
    """Where a video is cut into cubes, and into how many."""

    kind: CubingKind = "momentum"
    """Where cuts come from and what their gradient is (docs/cubing.md); `momentum` is the published way."""
    frames_per_cube: float = 5.0
    """Average number of frames that share a cube."""
    min_cube_frames: int = 1
    """Shortest cube, in frames (a video shorter than that is one cube)."""
    max_cube_frames: int | None = None
    """Longest cube, in frames; None: no limit."""
    tau: float = 0.5
    """Temperature of the gate."""
    alpha: float = 0.8
    """Share of the newest frame difference in the momentum."""
    energy_features: bool = True
    """Show the gate how strong a change is; without (published) its LayerNorm sees only the direction."""
    energy_prior: float = 1.0
    """Log odds per e-fold of change with which the gate starts: an untrained gate cuts where most changes.
    0: it starts knowing nothing. Needs energy_features."""
    aux_weight: float = 0.001
    """Weight of the mean norm of the gate's logits in the loss."""
    noise_start: float = 1.0
    """Weight of the gate's Gumbel noise at the first step of training."""
    noise_end: float = 0.01
    """The same after `noise_share` of the steps."""
    noise_share: float = 0.6
    """Share of the steps over which the noise is lowered, along a cosine."""

    def __post_init__(self):
        _check_choices(self, kind=CubingKind)
        shortest, longest = self.min_cube_frames, self.max_cube_frames
        _check(self.frames_per_cube >= 1, f"frames_per_cube is at least 1, got {self.frames_per_cube}")
        _check(
            1 <= shortest <= self.frames_per_cube,
            f"min_cube_frames {shortest} must lie between 1 and frames_per_cube {self.frames_per_cube}",
        )
        if longest is not None:
            _check(
                longest >= max(self.frames_per_cube, 2 * shortest - 1),
                f"max_cube_frames {longest} must reach frames_per_cube {self.frames_per_cube} and "
                f"2 x min_cube_frames - 1 = {2 * shortest - 1}, else some videos cannot be cut",
            )
        _check(self.tau > 0, f"tau must be positive, got {self.tau}")
        _check(0 < self.alpha <= 1, f"alpha must lie in (0, 1], got {self.alpha}")
        _check(self.energy_prior >= 0, f"energy_prior must not be negative, got {self.energy_prior}")
        _check(self.aux_weight >= 0, f"aux_weight must not be negative, got {self.aux_weight}")
        _check(
            0 <= self.noise_end <= self.noise_start,
            f"noise must fall from noise_start to noise_end >= 0, got {self.noise_start} -> {self.noise_end}",
        )
        _check(0 < self.noise_share <= 1, f"noise_share must lie in (0, 1], got {self.noise_share}")

    def num_cubes(self, num_frames: int) -> int:
        """Cubes of a video of that many frames; known before a frame is seen, so that lengths are too."""
        _check(num_frames >= 1, f"a video has at least one frame, got {num_frames}")
        if num_frames == 1:
            return 1
        cubes = max(round(num_frames / self.frames_per_cube), 2)
        if self.max_cube_frames is not None:
            cubes = max(cubes, math.ceil(num_frames / self.max_cube_frames))
        return max(min(cubes, num_frames // self.min_cube_frames), 1)

    def noise_weight(self, progress: float) -> float:
        """Weight of the noise when `progress` (0..1) of the training steps are done."""
        share = min(max(progress, 0.0) / self.noise_share, 1.0)
        return self.noise_end + (self.noise_start - self.noise_end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """How the patch tokens of a cube become Q tokens."""

    kind: ResamplerKind = "perceiver"
    """Learned queries that attend to the cube, or a mean over its frames with or without spatial pooling."""
    queries: int = 64
    """Tokens per cube (kind `identity` ignores it: one token per patch)."""
    head_width: int = 128
    """Channels of an attention head; there are lm width // head_width heads, at least one."""
    query_init_std: float = 0.02
    """Spread of the initial queries; at 0 (published) all queries start equal."""
    time_unit: TimeUnit = "seconds"
    """What the time position of a frame counts (published: frames)."""

    def __post_init__(self):
        _check_choices(self, kind=ResamplerKind, time_unit=TimeUnit)
        _check(self.queries > 0, f"queries must be positive, got {self.queries}")
        _check(self.head_width > 0, f"head_width must be positive, got {self.head_width}")
        _check(self.query_init_std >= 0, f"query_init_std must not be negative, got {self.query_init_std}")
        _check(
            self.kind != "spatial_pool" or math.isqrt(self.queries) ** 2 == self.queries,
            f"spatial_pool makes a square of tokens; {self.queries} queries are none",
        )

    def num_heads(self, lm_width: int) -> int:
        """Attention heads for a language model of that width. ValueError if they do not divide it."""
        heads = max(lm_width // self.head_width, 1)
        _check(
            lm_width % heads == 0,
            f"{heads} heads do not divide the language model's width {lm_width}; change head_width",
        )
        return heads


@dataclass(frozen=True, kw_only=True)
class ThumbnailConfig:
    """The picture of the whole video: the mean of the frames that open a cube."""

    enabled: bool = True
    """Without it the gate has no gradient but the penalty."""
    pooling: ThumbnailPooling = "grid"
    """Join neighbours in the plane, or (published) runs of consecutive tokens, which straddle rows."""

    def __post_init__(self):
        _check_choices(self, pooling=ThumbnailPooling)


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """From the resampler's width to the language model's."""

    kind: str = "identity"
    """identity, linear, or mlpNx_gelu with N linear layers."""

    def __post_init__(self):
        known = self.kind in ("identity", "linear") or MLP_KIND.fullmatch(self.kind)
        _check(
            bool(known), f"projector {self.kind!r} is none of identity, linear, mlpNx_gelu (mlp2x_gelu ...)"
        )

    @property
    def depth(self) -> int:
        """Linear layers: 0 for identity."""
        match = MLP_KIND.fullmatch(self.kind)
        return int(match[1]) if match else {"identity": 0, "linear": 1}[self.kind]


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """How a timestamp stands in the text."""

    time_style: TimeStyle = "fixed"
    """Leading zeros, so that lengths are known in advance; plain (published) drops them."""
    time_digits: int = 5
    """Digits before the point: 99999 s are 27 hours."""
    time_decimals: int = 1
    """Digits after it; 0 leaves out the point."""

    def __post_init__(self):
        _check_choices(self, time_style=TimeStyle)
        _check(self.time_digits >= 1, f"time_digits must be positive, got {self.time_digits}")
        _check(self.time_decimals >= 0, f"time_decimals must not be negative, got {self.time_decimals}")

    @property
    def time_width(self) -> int:
        """Characters of a timestamp, leading zeros included."""
        return self.time_digits + (self.time_decimals + 1 if self.time_decimals else 0)


@dataclass(frozen=True, kw_only=True)
class MultimodalConfig:
    """Everything the vision side needs to know, as saved in a checkpoint's config.json."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    cubing: CubingConfig = field(default_factory=CubingConfig)
    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    thumbnail: ThumbnailConfig = field(default_factory=ThumbnailConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    first_special_id: int
    """Id of the first of `MODEL_TOKENS`; the others follow it."""
    time_token_ids: tuple[int, ...]
    """Ids of the characters of `TIME_CHARACTERS`."""

    def __post_init__(self):
        object.__setattr__(self, "time_token_ids", tuple(self.time_token_ids))  # JSON knows lists only
        ids = self.time_token_ids
        _check(self.first_special_id >= 0, f"first_special_id is an id, got {self.first_special_id}")
        _check(
            len(set(ids)) == len(TIME_CHARACTERS) == len(ids) and min(ids) >= 0,
            f"time_token_ids must be {len(TIME_CHARACTERS)} different ids, one for each of "
            f"{TIME_CHARACTERS!r}; got {ids}",
        )
        if self.thumbnail.enabled:
            self._check_thumbnail()

    def _check_thumbnail(self) -> None:
        tokens, patches = self.tokens_per_cube, self.tower.num_patches
        if self.thumbnail.pooling == "runs":
            _check(
                patches % tokens == 0, f"thumbnail runs: {patches} patches are no multiple of {tokens} tokens"
            )
        else:
            _check(
                math.isqrt(tokens) ** 2 == tokens, f"thumbnail grid: {tokens} tokens per cube are no square"
            )

    @property
    def tokens_per_cube(self) -> int:
        """Q: visual tokens of a cube, of an image, and of the thumbnail."""
        return self.tower.num_patches if self.resampler.kind == "identity" else self.resampler.queries

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` takes them back."""
        return {**asdict(self), "time_token_ids": list(self.time_token_ids)}

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> "MultimodalConfig":
        """Build from `to_dict`'s output. Unknown keys are refused."""
        return build(cls, mapping, "multimodal config")


def published(config: MultimodalConfig) -> MultimodalConfig:
    """The same model with the behaviour of the published code instead of the corrected defaults."""
    gate = dict(energy_features=False, energy_prior=0.0, min_cube_frames=1, max_cube_frames=None)
    return replace(
        config,
        tower=replace(config.tower, post_layernorm=False),
        cubing=replace(config.cubing, **gate),
        resampler=replace(config.resampler, query_init_std=0.0, time_unit="frames"),
        thumbnail=replace(config.thumbnail, pooling="runs"),
        layout=replace(config.layout, time_style="plain"),
    )
