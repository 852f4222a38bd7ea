"""What each step of the three pipelines can be told: the keys and defaults of seed 001's JSON files.

Keys of our own: `output_root`, `batch_size` and `image_size` where the seed has none, `overlays`,
`prompt_text`, `fusion_bottleneck` and `init_head_checkpoint` of the hybrid. Meanings and
paths: docs/qwen_vl_pipelines.md.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from quicksviewer.qwen_vl_finetune.pipelines.config import (
    PathsConfig,
    check_not_negative,
    check_positive,
    check_share,
    dtype_named,
)
from quicksviewer.qwen_vl_finetune.pipelines.losses import LossWeights

FULL_ATTENTION = (7, 15, 23, 31)
"""Blocks of the real tower that see the whole picture."""
QUESTION = "Please determine whether this image is Real or Fake. Answer only with Fake or Real."
UNIT = 28
"""Pixels of a merge group: sides of pictures are multiples of it."""


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How long and how fast heads and adapters are trained."""

    seed: int = 42
    epochs: int = 2
    batch_size: int = 4
    num_workers: int = 0
    grad_accum: int = 1
    lr_head: float = 1e-3
    lr_lora: float = 1e-4
    weight_decay: float = 0.01
    """Of the heads; adapters have none."""
    warmup_ratio: float = 0.05
    max_norm: float = 1.0
    amp_dtype: str = "bfloat16"
    """What products are computed in."""
    torch_dtype: str = "bfloat16"
    """What frozen weights are held in."""
    image_size: int = 448
    evi_alpha: float = 0.5
    """Share of cross-entropy in the loss of the heat map; the rest is Dice."""

    def __post_init__(self):
        check_positive(self, "epochs", "batch_size", "grad_accum", "lr_head", "lr_lora", "max_norm")
        check_not_negative(self, "num_workers", "weight_decay")
        check_share(self, "warmup_ratio")
        dtype_named(self.amp_dtype)
        dtype_named(self.torch_dtype)
        check_size(self.image_size)
        if not 0 <= self.evi_alpha <= 1:
            raise ValueError(f"evi_alpha must be in 0 .. 1, got {self.evi_alpha}")


def check_size(size: int) -> None:
    if size < UNIT or size % UNIT:
        raise ValueError(f"image_size must be a multiple of {UNIT}, got {size}")


# --- task 1 ---


@dataclass(frozen=True, kw_only=True)
class ModularTrain(PathsConfig, Optimisation):
    """config_lora.json"""

    model_path: str
    ann_train: str
    out_dir: str
    lora_target_layers: tuple[int, ...] | None = None
    """Blocks of the tower with adapters; None: all."""
    visual_layers: tuple[int, ...] = FULL_ATTENTION
    """Blocks that the heads look at."""
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lambda_cls: float = 1.0
    lambda_evi: float = 2.0
    lambda_sparse: float = 0.001
    lambda_contrast: float = 0.01
    train_log: str = "train_log.csv"
    final_trained_heads: str = "modular_vit_lora"
    """Folder of adapters and heads, under out_dir."""

    def __post_init__(self):
        Optimisation.__post_init__(self)
        check_positive(self, "lora_r", "lora_alpha")
        _ = self.weights

    @property
    def weights(self) -> LossWeights:
        return LossWeights(
            head_cls=self.lambda_cls,
            head_evi=self.lambda_evi,
            head_sparse=self.lambda_sparse,
            head_contrast=self.lambda_contrast,
        )


@dataclass(frozen=True, kw_only=True)
class ModularEval(PathsConfig):
    """config_eval.json; lora_* and visual_layers are the checkpoint's own, and compared where given."""

    ckpt_path: str
    model_path: str
    ann_test: str
    out_dir: str
    csv_path: str = "metrics.csv"
    output_json: str = "inference_results.json"
    batch_size: int = 4
    num_workers: int = 0
    visual_layers: tuple[int, ...] | None = None
    lora_target_layers: tuple[int, ...] | None = None
    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    torch_dtype: str = "bfloat16"
    overlays: int = 12
    """Pictures to draw with mask and heat map, under out_dir/overlays."""

    def __post_init__(self):
        check_positive(self, "batch_size")
        check_not_negative(self, "num_workers", "overlays")
        dtype_named(self.torch_dtype)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the language model is asked for its verdict."""

    prompt_text: str = QUESTION
    fake_token: str = "Fake"
    real_token: str = "Real"
    max_new_tokens: int = 4
    """Of the written answer, which is for the reader; 0 leaves it out. The probability needs none."""
    temperature: float = 0.0
    """0: the likeliest tokens."""
    top_p: float = 1.0
    batch_size: int = 4
    torch_dtype: str = "bfloat16"
    dataset_limit: int | None = None
    seed: int = 42

    def __post_init__(self):
        check_positive(self, "batch_size")
        check_not_negative(self, "max_new_tokens", "temperature")
        dtype_named(self.torch_dtype)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.dataset_limit is not None:
            check_positive(self, "dataset_limit")


@dataclass(frozen=True, kw_only=True)
class ModularFullEval(PathsConfig, Asking):
    """config_full_model_eval.json; image_size and lora_* as in ModularEval."""

    model_path: str
    lora_checkpoint: str
    annotation_file: str
    csv_path: str
    output_json: str | None = None
    """None: inference_results.json beside csv_path."""
    image_size: int | None = None
    lora_target_layers: tuple[int, ...] | None = None
    lora_r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None


# --- task 2 ---


@dataclass(frozen=True, kw_only=True)
class MappedDataset:
    """One file of annotations to map."""

    name: str
    annotation_file: str
    final_dataset_path: str
    batch_output_dir: str | None = None
    """Where finished parts wait; None: `parts` in final_dataset_path's folder."""


@dataclass(frozen=True, kw_only=True)
class MapWork:
    """How the checking of pictures is spread."""

    batch_size: int = 50
    """Pictures that a process takes at a time."""
    num_proc: int = 1

    def __post_init__(self):
        check_positive(self, "batch_size", "num_proc")


@dataclass(frozen=True, kw_only=True)
class LmMap(PathsConfig):
    """config_map.json"""

    base_model_path: str
    datasets: tuple[MappedDataset, ...]
    prompt_template: str = QUESTION + "{label_text}"
    """What stands before {label_text} is asked, the word in its place is learned."""
    map_batch_size: int = 50
    """Rows of a part; an interrupted run goes on behind its last part."""
    map_kwargs: MapWork = field(default_factory=MapWork)
    dataset_limit: int | None = None
    fake_token: str = "Fake"
    real_token: str = "Real"

    def __post_init__(self):
        check_positive(self, "map_batch_size")
        if not self.datasets:
            raise ValueError("datasets names no data set")
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError(f"datasets must have different names, got {names}")


@dataclass(frozen=True, kw_only=True)
class LmTrain(PathsConfig):
    """config_lora_trainer.json; `training_args` are those of transformers.TrainingArguments."""

    base_model_path: str
    train_dataset_path: str
    save_lora_path: str
    torch_dtype: str = "bfloat16"
    lora_target_blocks: tuple[int, ...] = FULL_ATTENTION
    lora_extra_modules: tuple[str, ...] = ("merger.mlp.0", "merger.mlp.2")
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_bias: Literal["none", "lora_only"] = "none"
    lora_task_type: Literal["CAUSAL_LM"] | None = "CAUSAL_LM"
    image_size: int = 448
    training_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_positive(self, "lora_r", "lora_alpha")
        check_size(self.image_size)
        dtype_named(self.torch_dtype)


@dataclass(frozen=True, kw_only=True)
class LmInfer(PathsConfig, Asking):
    """config_lora_infer.json; pictures come from annotation_file, or from what `map` has made of it."""

    base_model_path: str
    lora_path: str
    csv_path: str
    annotation_file: str | None = None
    mapped_dataset_path: str | None = None
    output_json: str | None = None

    def __post_init__(self):
        Asking.__post_init__(self)
        if (self.annotation_file is None) == (self.mapped_dataset_path is None):
            raise ValueError("give annotation_file or mapped_dataset_path, one of both")


# --- task 3 ---


@dataclass(frozen=True, kw_only=True)
class TargetText:
    """The words that the language model answers with."""

    fake: str = "Fake"
    real: str = "Real"


@dataclass(frozen=True, kw_only=True)
class VisualLora:
    """Adapters in the tower: all linear layers of some blocks, and further layers by pattern."""

    enabled: bool = True
    blocks: tuple[int, ...] = FULL_ATTENTION
    extra_patterns: tuple[str, ...] = ()
    extra_modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MergeLora:
    """Adapters in the merger, by pattern."""

    enabled: bool = True
    module_patterns: tuple[str, ...] = ("merger.mlp.0", "merger.mlp.2")
    extra_modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LanguageLora:
    """Adapters in the language model, by pattern."""

    enabled: bool = True
    module_patterns: tuple[str, ...] = tuple(
        f"layers.{layer}.self_attn.{name}" for layer in (24, 25, 26, 27) for name in ("q_proj", "v_proj")
    )
    extra_modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HybridLora:
    """Adapters of the hybrid, by part."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    bias: Literal["none", "lora_only"] = "none"
    visual: VisualLora = field(default_factory=VisualLora)
    merge: MergeLora = field(default_factory=MergeLora)
    lm: LanguageLora = field(default_factory=LanguageLora)


@dataclass(frozen=True, kw_only=True)
class HybridModel(PathsConfig):
    """What training and evaluation of the hybrid both say."""

    base_model_path: str
    output_dir: str
    lora_checkpoint: str = "task3_lora"
    head_checkpoint: str = "task3_heads.safetensors"
    fusion_checkpoint: str = "task3_fusion.safetensors"


@dataclass(frozen=True, kw_only=True)
class HybridTrain(HybridModel, Optimisation):
    """config_hybrid_train.json"""

    ann_train: str
    epochs: int = 3
    batch_size: int = 2
    lr_fusion: float = 5e-4
    visual_layers: tuple[int, ...] = FULL_ATTENTION
    fusion_tokens: int = 4
    fusion_hidden_dropout: float = 0.1
    fusion_bottleneck: int = 256
    """Width inside the fusion; the seed's is 4 times the language model's, 213 million weights at 7B."""
    prompt_text: str = "."
    target_text: TargetText = field(default_factory=TargetText)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    lora: HybridLora = field(default_factory=HybridLora)
    train_log: str = "train_log.csv"
    init_head_checkpoint: str | None = None
    """Folder that task 1 has trained: its heads are where these begin."""

    def __post_init__(self):
        Optimisation.__post_init__(self)
        check_positive(self, "lr_fusion", "fusion_tokens", "fusion_bottleneck")
        check_share(self, "fusion_hidden_dropout")


@dataclass(frozen=True, kw_only=True)
class HybridEval(HybridModel):
    """config_hybrid_eval.json"""

    ann_eval: str
    metrics_csv: str = "metrics.csv"
    inference_output: str = "inference_results.json"
    eval_dir: str = "task3_hybrid_lora/evaluation"
    """Where the two files above go."""
    batch_size: int = 2
    num_workers: int = 0
    torch_dtype: str = "bfloat16"
    overlays: int = 12

    def __post_init__(self):
        check_positive(self, "batch_size")
        check_not_negative(self, "num_workers", "overlays")
        dtype_named(self.torch_dtype)
