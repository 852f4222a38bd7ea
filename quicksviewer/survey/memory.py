"""Memory of a training step, without a GPU and without weights.

What is kept between steps (weights, gradients, states of the optimizer) is counted from the parameters of the
model. What exists for the length of a step is found by running the model's own forward and backward pass on
tensors that have shapes and no contents, and by adding up what is alive. Two depths of both transformers are
run, and the deep model follows, since every further layer adds the same.

Letters: B rows, T tokens, N frames, K learned tokens, P phases of a step.
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from quicksviewer.model.linear_loss import CHUNK_BYTES, LossHead, _LinearCrossEntropy
from quicksviewer.model.llava_arch import PARTS
from quicksviewer.survey.shape import Shape
from quicksviewer.train.recompute import recompute_parts
from quicksviewer.train.stages import trainable_prefixes
from quicksviewer.utils.modules import parts_report, train_only

SHALLOW = 2
"""Layers with which the extrapolation begins: with one, the last layer is also the first."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """A micro-batch of one GPU: B rows of T tokens each, of which K learn, and N frames in all."""

    rows: int
    tokens: int
    frames: int
    learned: int


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the memory of a run is used. `zero`: stage of DeepSpeed's ZeRO, 0: every GPU has everything."""

    stage: str
    gpus: int
    zero: int
    half: bool
    """Weights and gradients in bfloat16, with a float32 copy at the optimizer (DeepSpeed)."""
    autocast: bool = False
    """Float32 weights, bfloat16 products."""
    recompute: tuple[str, ...] = ()
    linear_loss: bool = True
    bucket: int = 0
    """Numbers in a bucket of DeepSpeed's communication; two of them exist at a time."""


# --- between steps: counted ---


@dataclass(frozen=True)
class Standing:
    """Bytes of each GPU between steps."""

    weights: int
    gradients: int
    optimizer: int


def standing(model: nn.Module, setup: Setup) -> Standing:
    """Bytes of weights, gradients and AdamW's states of a model whose trained parts are thawed.

    ZeRO-1 spreads states over GPUs, 2 gradients too, 3 weights too. In half precision the optimizer has a
    float32 copy of what it trains beside its two moments, else the two alone.
    """
    every = sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size, states = (2, 12) if setup.half else (4, 8)

    def share(count: int, from_stage: int) -> int:
        return math.ceil(count / setup.gpus) if setup.zero >= from_stage else count

    return Standing(size * share(every, 3), size * share(learning, 2), states * share(learning, 1))


def communication(model: nn.Module, setup: Setup) -> int:
    """Bytes of buckets, and under ZeRO-3 of the weights that are gathered for the largest two modules that
    are used at once; an estimate."""
    size = 2 if setup.half else 4
    if not setup.zero:
        return 0
    largest = max(p.numel() for p in model.parameters())
    layers = [sum(p.numel() for p in m.parameters()) for m in model.model.layers]
    gathered = largest + 2 * max(layers) if setup.zero == 3 else 0
    return 2 * size * setup.bucket + size * gathered


# --- in a step: simulated ---


@dataclass(frozen=True)
class Peaks:
    """Most bytes that are alive beside what stands: while media are encoded, until the loss, in the backward
    pass."""

    see: float
    read: float
    back: float

    @property
    def most(self) -> float:
        return max(self.see, self.read, self.back)


def activations(shape: Shape, setup: Setup, load: Load) -> Peaks:
    """Peaks of a step of the whole model. ValueError for a model whose shapes depend on values."""
    depths = shape.depths
    base = tuple(min(depth, SHALLOW) for depth in depths)
    first = simulated(shape, base, setup, load)
    values = [first.see, first.read, first.back]
    for which in (0, 1):
        if depths[which] > base[which]:
            deeper = tuple(depth + (place == which) for place, depth in enumerate(base))
            more = simulated(shape, deeper, setup, load)
            layers = depths[which] - base[which]
            pairs = zip((more.see, more.read, more.back), (first.see, first.read, first.back), strict=True)
            values = [
                value + layers * (one - other) for value, (one, other) in zip(values, pairs, strict=True)
            ]
    return Peaks(*values)


def simulated(shape: Shape, depths: tuple[int, int], setup: Setup, load: Load) -> Peaks:
    """Peaks of a step of a model of so many layers, by running it on tensors without contents."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    model = shape.model(depths).train()
    model.config._attn_implementation, model.config.use_cache = "sdpa", False
    model.linear_loss = setup.linear_loss
    train_only(model, trainable_prefixes(model, setup.stage))
    if setup.linear_loss:
        model.lm_head.__class__ = _head_of(load.learned * load.rows)
    # one index of the model asks a tensor for its shape; here all media are videos
    model._cube_times = lambda cuts, media: media.times[cuts.first_frame]
    learns = any(p.requires_grad for p in model.vision_tower.parameters())
    recompute_parts(model, tuple(part for part in setup.recompute if part != "vision_tower" or learns))
    try:
        with FakeTensorMode(), _one_document_a_row():
            _without_contents(model, torch.bfloat16 if setup.half else torch.float32)
            return _run(model, setup, load)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        name = type(model).__name__
        raise ValueError(
            f"{name}: shapes depend on values ({error}); its memory cannot be planned"
        ) from error


def _run(model: nn.Module, setup: Setup, load: Load) -> Peaks:
    """One step; gradients of weights are let go, being counted elsewhere."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_let_go)
    with _Alive(model) as alive, _products(setup):
        batch, encode, seen = _batch(model, load), model.encode_media, []

        def encode_and_note(*args, **kwargs):
            encoded = encode(*args, **kwargs)
            seen.append(alive.take_peak())
            return encoded

        model.encode_media = encode_and_note
        if load.rows == 1:  # without padding transformers takes no mask, which shows in its values alone
            fuse = model.fuse
            model.fuse = lambda *args: (fuse(*args)[0], None)
        out = model(**batch)
        read = alive.take_peak()
        loss = out.loss if out.gate_penalty is None else out.loss + out.gate_penalty
        del out
        loss.backward()
        return Peaks(seen[0], read, alive.take_peak())


@contextmanager
def _one_document_a_row() -> Iterator[None]:
    """transformers looks for borders of documents in the values of positions, and makes a mask where it
    cannot see them."""
    from transformers import masking_utils

    find = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


def _batch(model: nn.Module, load: Load) -> dict:
    frames = [load.frames // load.rows + (row < load.frames % load.rows) for row in range(load.rows)]
    frames = [count for count in frames if count]
    ids = torch.zeros(load.rows, load.tokens, dtype=torch.int64)
    media = {}
    if frames:
        size = model.vision_tower.image_size
        media = {
            "pixel_values": torch.zeros(sum(frames), 3, size, size, dtype=torch.uint8),
            "frame_times": torch.zeros(sum(frames)),
            "medium_frames": frames,
            "medium_is_video": [True] * len(frames),
        }
    return {"input_ids": ids, "labels": ids, "num_items_in_batch": torch.ones(()), **media}


def _head_of(learned: int) -> type[LossHead]:
    """The last layer with a loss of so many tokens: how many learn is a value, which fake tensors lack."""

    class CountedHead(LossHead):
        def forward(self, hidden, targets=None, weights=None):
            if targets is None:
                return super().forward(hidden)
            hidden_KD, labels_K = hidden.flatten(0, -2)[:learned], targets.flatten()[:learned]
            weight = self.weight
            if torch.is_autocast_enabled("cpu"):
                half = torch.get_autocast_dtype("cpu")
                hidden_KD, weight = hidden_KD.to(half), weight.to(half)
            chunk = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
            with torch.autocast("cpu", enabled=False):
                total, losses_K = _LinearCrossEntropy.apply(hidden_KD, weight, labels_K, None, chunk)
            return total, losses_K

    return CountedHead


def _let_go(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _products(setup: Setup):
    return torch.autocast("cpu", torch.bfloat16) if setup.autocast else nullcontext()


def _without_contents(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters and buffers of a model on the meta device become tensors of the CPU in the fake mode that
    is on; shared ones stay shared."""
    made = {}
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                if id(old) not in made:
                    made[id(old)] = nn.Parameter(torch.empty(old.shape, dtype=dtype), old.requires_grad)
                module._parameters[name] = made[id(old)]
        for name, old in list(module._buffers.items()):
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)


class _Alive(TorchDispatchMode):
    """Bytes of all storages that are alive, but for those of a model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet(
            tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())
        )
        self._held = list(self.known)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor.untyped_storage())
        return out

    def _meet(self, storage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, size)

    def _leave(self, size: int) -> None:
        self.now -= size

    def take_peak(self) -> int:
        """The most since the last call."""
        peak, self.peak = self.peak, self.now
        return peak


def trained_parts(model: nn.Module, stage: str) -> list:
    """The report on what learns, after freezing the rest as a stage does."""
    train_only(model, trainable_prefixes(model, stage))
    return parts_report(model, PARTS)
