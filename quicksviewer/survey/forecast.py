"""From settings, structure, machine and sizes of rows to a plan. Pure but for the simulation of memory."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quicksviewer.data.packing import Caps, plan_packs, sizes_of
from quicksviewer.data.sampler import CostModel
from quicksviewer.model.layout import Layout
from quicksviewer.model.linear_loss import CHUNK_BYTES
from quicksviewer.model.processor import MediaConfig
from quicksviewer.survey.hardware import Hardware
from quicksviewer.survey.memory import (
    Load,
    Setup,
    activations,
    communication,
    standing,
    trained_parts,
)
from quicksviewer.survey.shape import Shape
from quicksviewer.survey.sizes import Sizes
from quicksviewer.train.args import Settings
from quicksviewer.train.cost import cost_model
from quicksviewer.train.lora import names_of
from quicksviewer.utils.recipes import RECIPES

CONTEXT = 1.5 * 2**30
"""Bytes of a GPU that CUDA, its libraries and NCCL take; assumed."""
SLACK = 0.06
"""Share of the bytes of a step that the allocator loses between its blocks; assumed."""
LEARNED = 0.5
"""Share of the tokens of text that are learned, where rows are not looked at; for memory of the loss."""
BUCKET = 5e8
"""DeepSpeed's own size of a bucket."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """`said`: rows, seconds of the video of each, tokens of its text; None: measured. `zero`: None: as the
    run says."""

    said: tuple[int, float, int] | None
    zero: int | None
    efficiency: float

    def __post_init__(self):
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"efficiency is a share of the peak, got {self.efficiency}")
        if self.said is not None and (self.said[0] < 1 or self.said[1] < 0 or self.said[2] < 1):
            raise ValueError(f"rows, seconds and text_tokens must be positive, got {self.said}")


@dataclass(frozen=True)
class MemoryRow:
    """`known`: "counted", "simulated" or "assumed"."""

    part: str
    bytes: float
    known: str


@dataclass(frozen=True)
class Clip:
    """The longest video that a row may hold, and what bounds it."""

    frames: int
    seconds: float
    tokens: int
    bound: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `quicksviewer plan` says; the fields are those of plan.json."""

    name: str
    gpus: int
    samples: int
    over_limit: int
    steps: int
    step_rows: int
    step_tokens: float
    step_frames: float
    memory: tuple[MemoryRow, ...]
    needed: float
    room: float
    fits: bool
    kept: float
    """Bytes of a step when all activations are kept, and when both transformers recompute theirs."""
    recomputed: float
    logits: float
    """Bytes of the logits that exist at a time; part of the language model's row."""
    clip: Clip
    flops: float
    efficiency: float
    hours: float
    cost: float | None


def forecast(
    settings: Settings, shape: Shape, machine: Hardware, wishes: Wishes, sizes: Sizes | None
) -> Plan:
    """The plan. `sizes`: of the rows; None where `wishes` says them. ValueError for what is not planned
    for."""
    values = settings.values
    _refuse(settings)
    setup = setup_of(settings, machine.gpus, wishes.zero)
    rows_NK, text = sizes_in(settings, shape, wishes, sizes)
    usable_NK = rows_NK[rows_NK[:, 0] <= values.model_max_length]
    if not len(usable_NK):
        raise ValueError(f"all {len(rows_NK)} rows exceed --model_max_length {values.model_max_length}")
    units_NK = packed(usable_NK, values)
    step_rows = values.per_device_train_batch_size * values.gradient_accumulation_steps * machine.gpus
    epoch = math.ceil(len(units_NK) / step_rows)
    steps = values.max_steps if values.max_steps > 0 else math.ceil(epoch * values.num_train_epochs)
    load = heaviest(units_NK, values.per_device_train_batch_size, text)
    memory = memory_rows(shape, setup, load)
    other = replace(setup, recompute=() if setup.recompute else ("llm", "vision_tower"))
    ways = (_peak(memory), activations(shape, other, load).most)
    model = shape.model()
    trained_parts(model, setup.stage)
    flops = float(work(model, setup)(units_NK).mean()) * step_rows * steps
    hours = flops / (machine.gpus * machine.tflops * 1e12 * wishes.efficiency) / 3600
    needed, room = sum(row.bytes for row in memory), machine.memory_gib * 2**30
    return Plan(
        name=f"{settings.stage} of recipe {settings.recipe} on {machine.gpus} GPUs, ZeRO-{setup.zero}",
        gpus=machine.gpus,
        samples=len(usable_NK),
        over_limit=len(rows_NK) - len(usable_NK),
        steps=steps,
        step_rows=step_rows,
        step_tokens=float(units_NK[:, 0].mean() * step_rows),
        step_frames=float(units_NK[:, 1].mean() * step_rows),
        memory=tuple(memory),
        needed=needed,
        room=room,
        fits=needed <= room,
        kept=ways[bool(setup.recompute)],
        recomputed=ways[not setup.recompute],
        logits=logits(shape, setup, load),
        clip=longest_clip(settings, shape, setup, text, room, memory),
        flops=flops,
        efficiency=wishes.efficiency,
        hours=hours,
        cost=None if machine.price is None else hours * machine.gpus * machine.price,
    )


def _refuse(settings: Settings) -> None:
    """ValueError for what is not planned for."""
    values = settings.values
    if values.lora_enable or values.bits != 16:
        raise ValueError(
            "adapters and quantised weights are not planned for; plan without --lora_enable, --bits"
        )
    if values.seq_parallel_size > 1:
        raise ValueError("sequence parallelism is not planned for (--seq_parallel_size)")


# --- settings ---


def setup_of(settings: Settings, gpus: int, zero: int | None) -> Setup:
    """How a run uses memory, from its settings and the DeepSpeed file that they name."""
    values = settings.values
    told = _deepspeed(values.deepspeed) if values.deepspeed else {}
    section = told.get("zero_optimization", {})
    bucket = section.get("reduce_bucket_size", BUCKET)
    parts = names_of(values.checkpoint_parts)
    if values.gradient_checkpointing:
        parts = ("llm", "vision_tower")
    in_deepspeed = bool(told) or bool(zero)
    return Setup(
        stage=settings.stage,
        gpus=gpus,
        zero=section.get("stage", 0) if zero is None else zero,
        half=bool(values.bf16) and in_deepspeed,
        autocast=bool(values.bf16) and not in_deepspeed,
        recompute=parts,
        linear_loss=values.linear_loss,
        bucket=0 if bucket == "auto" else int(bucket),
    )


def _deepspeed(name) -> dict:
    """The mapping of --deepspeed: given, or in a file where the run starts or the repository is."""
    if isinstance(name, dict):
        return name
    for path in (Path(name), RECIPES.parents[1] / name):
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    raise ValueError(f"--deepspeed names {name}, which is not there")


# --- rows ---


def sizes_in(settings: Settings, shape: Shape, wishes: Wishes, sizes: Sizes | None):
    """Sizes (N, 3) of all rows, and tokens of text of a typical row."""
    if sizes is not None:
        tokens, frames = sizes.column("tokens"), sizes.column("frames")
        layout = Layout(shape.mm)
        text = [
            t - (len(layout.video_ids(int(n))) if n else 0)
            for t, n in zip(tokens[:1000], frames, strict=False)
        ]
        return sizes_of(tokens, frames), max(int(np.median(text)), 1)
    rows, seconds, text = wishes.said
    media = MediaConfig(**settings.data.media())
    frames = min(max(round(seconds * media.fps), 1), media.max_frames) if seconds else 0
    tokens = text + (len(Layout(shape.mm).video_ids(frames)) if frames else 0)
    return sizes_of(np.full(rows, tokens), np.full(rows, frames)), text


def packed(rows_NK: np.ndarray, values) -> np.ndarray:
    """What stands in a row of a batch: samples, or packs of them."""
    if not values.pack:
        return rows_NK
    caps = Caps(
        tokens=values.pack_max_tokens or values.model_max_length,
        frames=values.pack_max_frames,
        squares=values.pack_max_squares,
    )
    return plan_packs(rows_NK, caps).totals(rows_NK)


def heaviest(rows_NK: np.ndarray, count: int, text: int) -> Load:
    """The micro-batch of the rows with the most tokens, all padded to the longest of them."""
    top_BK = rows_NK[np.argsort(-rows_NK[:, 0], kind="stable")[:count]]
    tokens, frames = int(top_BK[:, 0].max()), int(top_BK[:, 1].sum())
    learned = max(int(LEARNED * (text if frames else tokens)), 1)
    return Load(rows=len(top_BK), tokens=tokens, frames=frames, learned=min(learned, tokens))


# --- memory ---


def memory_rows(shape: Shape, setup: Setup, load: Load) -> list[MemoryRow]:
    """Bytes of each GPU by part, and how each is known."""
    model = shape.model()
    trained_parts(model, setup.stage)
    stands, peaks = standing(model, setup), activations(shape, setup, load)
    return [
        MemoryRow("weights", stands.weights, "counted"),
        MemoryRow("gradients", stands.gradients, "counted"),
        MemoryRow("optimizer", stands.optimizer, "counted"),
        MemoryRow("buckets and gathered weights", communication(model, setup), "assumed"),
        MemoryRow("vision tower: a step until cubes are resampled", peaks.see, "simulated"),
        MemoryRow("language model and loss, beyond it", max(peaks.most - peaks.see, 0), "simulated"),
        MemoryRow("CUDA context, libraries", CONTEXT, "assumed"),
        MemoryRow("lost between blocks", SLACK * peaks.most, "assumed"),
    ]


def _peak(memory: list[MemoryRow]) -> float:
    return sum(row.bytes for row in memory if row.known == "simulated")


def logits(shape: Shape, setup: Setup, load: Load) -> float:
    """Bytes of float32 logits that exist at a time."""
    whole = 4.0 * shape.plain["vocab_size"] * load.rows * (load.learned if setup.linear_loss else load.tokens)
    return min(whole, CHUNK_BYTES) if setup.linear_loss else whole


def longest_clip(settings, shape: Shape, setup: Setup, text: int, room: float, memory) -> Clip:
    """The most frames of one video in a row that stays within the settings, the tokens and the memory."""
    media = MediaConfig(**settings.data.media())
    limit = settings.values.model_max_length
    layout = Layout(shape.mm)
    frames, bound = _largest(media.max_frames, lambda n: text + len(layout.video_ids(n)) <= limit)
    bound = "--model_max_length" if bound else "--video_num_frames"
    stands = sum(row.bytes for row in memory if row.known == "counted" or "gathered" in row.part) + CONTEXT

    def needs(n: int) -> float:
        tokens = text + len(layout.video_ids(n))
        load = Load(rows=1, tokens=tokens, frames=n, learned=max(int(LEARNED * text), 1))
        return stands + (1 + SLACK) * activations(shape, setup, load).most

    if frames and needs(frames) > room:
        frames, bound = _by_memory(frames, needs, room), "memory"
    tokens = text + len(layout.video_ids(frames)) if frames else 0
    return Clip(frames, frames / media.fps, tokens, bound)


def _largest(most: int, fits) -> tuple[int, bool]:
    """The largest of 1..most that fits (0: none), and whether something larger was refused."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low, low < most


def _by_memory(most: int, needs, room: float) -> int:
    """Frames that fill the room: bytes grow with them along a line but for whole chunks, so that two trials
    tell where it ends; what they tell is tried in turn."""
    half = max(most // 2, 1)
    at_half, at_most = needs(half), needs(most)
    slope = max((at_most - at_half) / max(most - half, 1), 1.0)
    frames = min(max(int(half + (room - at_half) / slope), 0), most - 1)
    while frames and needs(frames) > room:
        frames = int(frames * 0.97)
    return frames


# --- work ---


def work(model, setup: Setup) -> CostModel:
    """Operations of a row of (tokens, frames, tokens squared), after train/cost.py.

    That counts a forward pass and two backward ones. Frozen weights need no gradient of their own, recomputed
    layers one more forward pass.
    """
    units = cost_model(model)
    rows = {row.part: row for row in trained_parts(model, setup.stage)}
    llm = (2 + (rows["llm"].trainable > 0) + ("llm" in setup.recompute)) / 3
    tower = (3 + ("vision_tower" in setup.recompute)) / 3 if rows["vision_tower"].trainable else 1
    square = (3 + ("llm" in setup.recompute)) / 3
    token = 6.0 * rows["llm"].parameters
    return CostModel(
        token=llm * token, frame=tower * units.frame * token, square=square * units.square * token
    )
