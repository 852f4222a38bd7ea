"""What a run can be told: three dataclasses, filled from defaults, then the recipe, then flags.

A recipe is a YAML file in configs/recipes/ with the kind of model (`system`, see systems.py), the sections
`shared`, `mm` (the structure of a fresh model) and one for each stage of that kind; a name without a slash is
looked up there. A key nobody declared is an error.
"""

import difflib
import json
from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import transformers
from transformers import HfArgumentParser

from quicksviewer.data.packing import SIZES, Caps
from quicksviewer.train.systems import DEFAULT, System, system_named
from quicksviewer.utils.config import load_mapping
from quicksviewer.utils.recipes import recipe_path
from quicksviewer.utils.registry import lookup

SECTIONS = ("system", "synthetic", "shared", "mm")
"""Keys of a recipe beside its stages."""


def flag(default: Any, text: str) -> Any:
    """A dataclass field with a default and the line that --help shows."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: default, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model, and what is changed about it."""

    model_name_or_path: str | None = flag(
        None, "Folder of a language model (stage 1) or of an earlier stage."
    )
    vision_tower: str | None = flag(None, "Folder of a CLIP or SigLIP checkpoint; for a fresh model.")
    version: str = flag("qwen2", "Conversation template of a fresh model: qwen2, llama_3, smollm2, plain.")
    attn_implementation: str | None = flag(
        None, "sdpa (default), eager, or flash_attention_2 where installed."
    )
    mm_cubing: str | None = flag(
        None, "Cubing of a fresh model, a kind of CubingConfig: momentum, uniform ..."
    )
    frames_per_cube: float | None = flag(None, "Average frames of a cube, of a fresh model.")
    mm_resampler_type: str | None = flag(
        None, "Resampler of a fresh model: perceiver, spatial_pool, identity."
    )
    mm_projector_type: str | None = flag(None, "Projector of a fresh model: identity, linear, mlpNx_gelu.")
    mm_use_thumbnail: bool | None = flag(None, "Whether a fresh model has thumbnails.")
    lora_enable: bool = flag(False, "Train LoRA adapters in place of the weights of --lora_parts.")
    lora_parts: str = flag("llm", "Parts that get adapters, with commas: llm, vision_tower, resampler ...")
    lora_targets: str | None = flag(
        None, "Which of their linear layers, with commas: ends of names or globs (default: all)."
    )
    lora_r: int = flag(64, "LoRA rank.")
    lora_alpha: int = flag(16, "LoRA scale.")
    lora_dropout: float = flag(0.05, "LoRA dropout.")
    lora_bias: str = flag("none", "Which biases LoRA trains: none, all, lora_only.")
    bits: int = flag(
        16, "Bits of the language model's frozen weights: 16, 8, or 4 (nf4, double quantisation); for LoRA."
    )

    STRUCTURE = {
        "mm_cubing": ("cubing", "kind"),
        "frames_per_cube": ("cubing", "frames_per_cube"),
        "mm_resampler_type": ("resampler", "kind"),
        "mm_projector_type": ("projector", "kind"),
        "mm_use_thumbnail": ("thumbnail", "enabled"),
    }

    def structure(self) -> dict[tuple[str, str], Any]:
        """The flags that were given and that only a fresh model can follow: (section, key) -> value."""
        return {
            at: getattr(self, name) for name, at in self.STRUCTURE.items() if getattr(self, name) is not None
        }


@dataclass
class DataArguments:
    """What is read, and how media are seen."""

    data_path: str | None = flag(
        None, "Mixture: a YAML file, or paths joined by ';' with {a,b}, *k and #a_b."
    )
    data_registry: str | None = flag(
        None, "YAML file that gives names of the mixture a path and a media root."
    )
    video_fps: float | None = flag(None, "Frames per second that are looked at (fresh model: 1).")
    video_num_frames: int | None = flag(None, "Most frames of a video (fresh model: 420).")
    image_max_tiles: int | None = flag(
        None, "Tiles of a high-resolution image beside the whole (fresh model: 0)."
    )
    video_decoder: str | None = flag(None, "av, decord or torchcodec (fresh model: av).")
    max_bad_share: float = flag(0.2, "End the run when more than this share of the rows cannot be used.")
    stop_at_bad_sample: bool = flag(False, "End the run at the first row that cannot be used.")
    quarantine: str | None = flag(
        None, "Ledger of rows that cannot be used, read and written (default: OUTPUT_DIR/quarantine.jsonl)."
    )

    MEDIA = {
        "video_fps": "fps",
        "video_num_frames": "max_frames",
        "image_max_tiles": "max_tiles",
        "video_decoder": "decoder",
    }

    def media(self) -> dict[str, Any]:
        """Media settings that were given, by their names in MediaConfig."""
        return {
            name: getattr(self, key) for key, name in self.MEDIA.items() if getattr(self, key) is not None
        }


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments, with the project's defaults and additions."""

    output_dir: str | None = flag(None, "Where the run writes: checkpoints, logs, resolved settings.")
    model_max_length: int = flag(16384, "Longest sample in tokens; a longer one is a bad sample.")
    mm_projector_lr: float | None = flag(None, "Learning rate of the projector, if not learning_rate.")
    mm_vision_tower_lr: float | None = flag(None, "Learning rate of the vision tower, if not learning_rate.")
    mm_resampler_lr: float | None = flag(None, "Learning rate of the resampler, if not learning_rate.")
    mm_cubing_lr: float | None = flag(None, "Learning rate of cubing and thumbnail, if not learning_rate.")
    noise_start: float | None = flag(
        None, "Weight of the gate's noise at step 0 (default: the model's config)."
    )
    noise_end: float | None = flag(None, "Weight of the gate's noise at the end of its schedule.")
    noise_share: float | None = flag(None, "Share of the steps over which the noise is lowered.")
    cubing_aux_weight: float | None = flag(None, "Weight of the gate's norm in the loss.")
    seq_parallel_size: int = flag(-1, "Ranks that share a sequence, in train_hybrid; -1: all of them.")
    seq_parallel_ring_size: int = flag(-1, "Of these, ranks of a ring; -1: as few as the heads allow.")
    seq_parallel_ring_type: Literal["ring_varlen", "zigzag_ring_varlen"] = flag(
        "zigzag_ring_varlen", "How a row is cut for the ring: one span for each rank, or two far apart."
    )
    group_by_modality_length: bool = flag(False, "Steps of one modality and of about one length each.")
    pack: bool = flag(False, "Several samples share a row; attention stays within each (train_repack).")
    pack_max_tokens: int | None = flag(None, "Most tokens of a pack (default: model_max_length).")
    pack_max_frames: int | None = flag(None, "Most frames of a pack (default: any number).")
    pack_max_squares: int | None = flag(None, "Most squared tokens, summed over the samples of a pack.")
    lengths_cache: str | None = flag(None, "Folder that keeps measured sizes (default: in output_dir).")
    manifest: str | None = flag(
        None, "Parquet file of `quicksviewer data index`: sizes are read from it and no medium is opened."
    )
    checkpoint_parts: str | None = flag(
        None, "Parts that recompute activations in the backward pass, with commas: llm, vision_tower."
    )
    feature_cache: str | None = flag(
        None, "Folder that keeps what a frozen vision tower sees, so that later epochs need not look again."
    )
    loss_weighting: str = flag("token", "Samples count by their tokens (token), alike (sample), square_root.")
    linear_loss: bool = flag(True, "Compute the loss without the logits of all tokens.")
    eval_task: str | None = flag(
        None, "Benchmark of `quicksviewer eval` to ask a few items of on the way, logged as eval_TASK_..."
    )
    eval_every_steps: int | None = flag(None, "With eval_task: steps from one such evaluation to the next.")
    eval_limit: int | None = flag(None, "With eval_task: items, from all over the task (default: 32).")
    eval_data: str | None = flag(None, "With eval_task: folder of its files (default: that of the task).")
    remove_unused_columns: bool = flag(False, "Must stay false: samples are made by our own dataset.")

    PART_RATES = {
        "projector": "mm_projector_lr",
        "vision_tower": "mm_vision_tower_lr",
        "resampler": "mm_resampler_lr",
        "cubing": "mm_cubing_lr",
    }

    def cubing(self) -> dict[str, float]:
        """Settings of the gate's noise and penalty that were given, by their names in CubingConfig."""
        given = dict(
            noise_start=self.noise_start,
            noise_end=self.noise_end,
            noise_share=self.noise_share,
            aux_weight=self.cubing_aux_weight,
        )
        return {name: value for name, value in given.items() if value is not None}

    def sequence_parallel(self) -> dict[str, int | None]:
        """Size of a team and of its ring, None where they were not given. ValueError for what is no size."""
        names = {"sequence": "seq_parallel_size", "ring": "seq_parallel_ring_size"}
        given = {size: getattr(self, name) for size, name in names.items()}
        for size, value in given.items():
            if value == 0 or value < -1:
                raise ValueError(f"--{names[size]} must be at least 1, or -1 for a choice, got {value}")
        return {size: None if value == -1 else value for size, value in given.items()}

    @property
    def needs_sizes(self) -> bool:
        """Whether rows have to be measured before the first step."""
        return self.pack or self.group_by_modality_length

    def pack_caps(self) -> Caps | None:
        """What a pack may hold, or None for one sample a row. ValueError for flags that contradict each
        other."""
        given = {name: getattr(self, f"pack_max_{name}") for name in SIZES}
        if self.manifest and not self.needs_sizes:
            raise ValueError("--manifest tells sizes of rows: it needs --pack or --group_by_modality_length")
        if not self.pack:
            if set_ := [f"--pack_max_{name}" for name, value in given.items() if value is not None]:
                raise ValueError(f"{', '.join(set_)} need --pack True")
            return None
        if self.group_by_modality_length:
            raise ValueError("packs are alike already: give --pack or --group_by_modality_length, not both")
        return Caps(**given | {"tokens": given["tokens"] or self.model_max_length})

    def part_rates(self) -> dict[str, float]:
        """Part of the model -> its own learning rate, where one was given."""
        return {
            part: rate for part, key in self.PART_RATES.items() if (rate := getattr(self, key)) is not None
        }


@dataclass(frozen=True)
class Settings:
    """What the command line and the recipe say, read and checked, but not yet held against the machine."""

    system: str
    stage: str
    recipe: str
    mm: dict
    model: ModelArguments
    data: DataArguments
    values: Namespace
    """All values by name, those of TrainingArguments too."""


@dataclass(frozen=True)
class Run:
    """All arguments of a run, and where they came from."""

    system: str
    """Name of a row of SYSTEMS."""
    stage: str
    recipe: str
    mm: dict
    model: ModelArguments
    data: DataArguments
    training: TrainingArguments


def read_recipe(name: str, stage: str) -> tuple[dict, dict]:
    """Settings of a stage (shared, then its own) and the `mm` section. Unknown sections are refused."""
    path = recipe_path(name)
    sections, known = load_mapping(path), (*SECTIONS, *recipe_system(name)[1].stages)
    if strangers := sorted(set(sections) - set(known)):
        raise ValueError(f"{path} has the sections {strangers}; a recipe has {', '.join(known)}")
    if stage not in sections:
        raise ValueError(f"{path} has no section {stage}")
    return {**(sections.get("shared") or {}), **(sections[stage] or {})}, sections.get("mm") or {}


def recipe_system(name: str) -> tuple[str, System]:
    """The kind of model that a recipe trains. ValueError for one that there is not."""
    path = recipe_path(name)
    system = str(load_mapping(path).get("system", DEFAULT))
    try:
        return system, system_named(system)
    except ValueError as error:
        raise ValueError(f"{path} > system: {error}") from error


def read_settings(argv: list[str], needs_files: bool = True) -> Settings:
    """Defaults, then the recipe, then the command line.

    ValueError for a name nobody declared, with the nearest known one, and for files that are missing; a plan
    does without these (`needs_files`).
    """
    first, _ = HEAD.parse_known_args(argv)
    parser = HfArgumentParser(
        [_Head, ModelArguments, DataArguments, TrainingArguments],
        prog="quicksviewer train",
        allow_abbrev=False,
    )
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    name, system = recipe_system(first.recipe)
    stage = first.stage or next(iter(system.stages))
    lookup(system.stages, stage, "stage")
    settings, mm = read_recipe(first.recipe, stage)
    known = {action.dest for action in parser._actions}
    for key in settings:
        _refuse(key, known, f"recipe {first.recipe}")
    parser.set_defaults(**{key: _as_text(value) for key, value in settings.items()})
    values, unknown = parser.parse_known_args(argv)
    for word in unknown:
        _refuse(word.lstrip("-").split("=")[0], known, "the command line")
    model, data = _fill(ModelArguments, values), _fill(DataArguments, values)
    _refuse_unfollowed(name, system, values)
    if needs_files:
        system.check_paths(first.recipe, stage, model, data, values.output_dir)
    return Settings(name, stage, first.recipe, mm, model, data, values)


def parse_args(argv: list[str]) -> Run:
    """Arguments of a run from the command line. Raises as `read_settings` does."""
    return as_run(read_settings(argv))


def as_run(settings: Settings) -> Run:
    """Settings with TrainingArguments, which look at the machine: call it when the process group runs."""
    training = _fill(TrainingArguments, settings.values)
    names = [f.name for f in fields(Run) if f.name != "training"]
    return Run(**{name: getattr(settings, name) for name in names}, training=training)


def _fill(cls, values):
    return cls(**{f.name: getattr(values, f.name) for f in fields(cls) if f.init})


@dataclass
class _Head:
    """The two arguments that decide where the others come from."""

    recipe: str = flag("7b", "Name in configs/recipes/, or the path of a YAML file.")
    stage: str | None = flag(None, "A stage of the recipe's kind of model (default: its first one).")


HEAD = HfArgumentParser([_Head], add_help=False, allow_abbrev=False)


def _refuse(key: str, known: set[str], where: str) -> None:
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{where} sets {key!r}, which is no argument{hint}")


def _refuse_unfollowed(name: str, system: System, values: Namespace) -> None:
    """ValueError for flags of this project that were given and that this kind of model does not heed."""
    if system.follows is None:
        return
    general = {f.name for f in fields(transformers.TrainingArguments)}
    ours = [f for cls in (ModelArguments, DataArguments, TrainingArguments) for f in fields(cls)]
    ours = [f for f in ours if f.name not in general | system.follows]
    if given := [f"--{f.name}" for f in ours if getattr(values, f.name) != f.default]:
        known = ", ".join(f"--{name}" for name in sorted(system.follows))
        raise ValueError(f"{', '.join(given)}: not for the system {name}, which heeds {known}")


def _as_text(value: Any) -> Any:
    """Mappings reach argparse as the JSON that a flag would carry."""
    return json.dumps(value) if isinstance(value, dict) else value


def resolved(run: Run) -> dict:
    """Every setting of a run as plain data, for the record that is written before the first step."""
    plain = {key: value for key, value in run.training.to_dict().items() if not key.endswith("_token")}
    return {
        "system": run.system,
        "stage": run.stage,
        "recipe": run.recipe,
        "mm": run.mm,
        "model": {f.name: getattr(run.model, f.name) for f in fields(run.model)},
        "data": {f.name: getattr(run.data, f.name) for f in fields(run.data)},
        "training": plain,
    }
