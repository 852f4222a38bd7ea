"""The warm-up that stands for pretraining: a tower learns to name single pictures, a language model to answer
in text.

In real life both come pretrained. Here seconds of training on the synthetic world stand for that; the result
is cached by the settings that made it (see `recipe.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from quicksviewer.conversation import TEMPLATES, Turn, encode, render
from quicksviewer.synthetic.corpus import CorpusConfig, rng_of, text_row
from quicksviewer.synthetic.video import draw_frame
from quicksviewer.synthetic.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, WORDS, WorldConfig, draw_world
from quicksviewer.utils.batching import batch_rows
from quicksviewer.utils.registry import load_target

PLACES = 2
"""Columns and rows of the grid in which the tower learns to say where the shape is."""
LABELS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
    "word": (None, *WORDS),
    "column": tuple(range(PLACES)),
    "row": tuple(range(PLACES)),
}
"""What the tower is asked about a picture."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How long the warm-ups are. Steps, not seconds, so that the same settings give the same weights."""

    tower_steps: int = 600
    tower_batch: int = 32
    lm_steps: int = 400
    lm_batch: int = 32
    """Over all processes together."""
    rate: float = 4e-3
    """AdamW's, for embeddings, norms and heads."""
    matrix_rate: float = 0.02
    """Muon's, for the matrices of the layers."""
    seed: int = 0


def picture(index: int, world: WorldConfig) -> tuple[np.ndarray, list[int]]:
    """A picture uint8 (H, W, 3) and its classes, in the order of LABELS."""
    rng = rng_of("picture", index)
    event = rng.choice(draw_world(rng.randrange(10**6), world).events)
    second = event.start + rng.random() * event.seconds
    image = np.asarray(draw_frame(event, second, world.size))
    column, row = _place(image, event, world)
    truth = {"column": column, "row": row}
    return image, [
        options.index(truth.get(name, getattr(event, name, None))) for name, options in LABELS.items()
    ]


def _place(image: np.ndarray, event, world: WorldConfig) -> tuple[int, int]:
    """Column and row of the shape's centre of mass, found by its colour."""
    distance = np.abs(image.astype(int) - np.array(COLOURS[event.colour])).sum(axis=-1)
    ys, xs = np.nonzero(distance == 0)
    return tuple(min(int(axis.mean() / world.size * PLACES), PLACES - 1) for axis in (xs, ys))


def warm_tower(
    folder: Path, world: WorldConfig, config: PretrainConfig, progress: Callable = lambda **_: None
) -> float:
    """Train the tower of a checkpoint folder on single pictures and write it back. Returns its last
    accuracy."""
    tower = load_target("transformers:AutoModel").from_pretrained(folder, local_files_only=True)
    torch.manual_seed(config.seed)
    heads = nn.ModuleDict(
        {name: nn.Linear(tower.config.hidden_size, len(opts)) for name, opts in LABELS.items()}
    )
    both = nn.ModuleDict({"tower": tower, "heads": heads})
    optimizer = WarmUpOptimizer(both, config, config.tower_steps)
    right = 0.0
    for step in range(config.tower_steps):
        first = step * config.tower_batch
        pixels, classes = zip(*(picture(first + i, world) for i in range(config.tower_batch)), strict=True)
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            # The sharpest patch decides, so that each patch learns to say what it sees.
            patches = tower(pixel_values=x).last_hidden_state
        logits = {name: head(patches.float()).amax(dim=1) for name, head in heads.items()}
        truth = torch.tensor(classes)
        loss = sum(F.cross_entropy(logits[name], truth[:, i]) for i, name in enumerate(LABELS))
        loss.backward()
        optimizer.step()
        hits = [(logits[name].argmax(-1) == truth[:, i]).float().mean() for i, name in enumerate(LABELS)]
        right = 0.95 * right + 0.05 * float(sum(hits) / len(hits)) if step else float(sum(hits) / len(hits))
        progress(loss=float(loss.detach()), accuracy=right)
    tower.save_pretrained(folder)
    return right


def text_batch(indices, tokenizer, template: str, world: WorldConfig, corpus: CorpusConfig) -> dict:
    """Text-only rows as a batch with labels."""
    rows = []
    for index in indices:
        row = text_row(index, world, corpus)
        roles = {"human": "user", "gpt": "assistant"}
        turns = [Turn(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
        ids, learn = encode(tokenizer, render(TEMPLATES[template], turns))
        rows.append(
            {"input_ids": ids, "labels": [i if told else -100 for i, told in zip(ids, learn, strict=True)]}
        )
    return batch_rows(rows, 0)


def warm_language_model(
    folder: Path,
    template: str,
    world: WorldConfig,
    corpus: CorpusConfig,
    config: PretrainConfig,
    progress: Callable = lambda **_: None,
) -> float:
    """Train the language model of a checkpoint folder on text rows and write it back. Returns its last loss.

    With torch.distributed running, the batch is split over the processes and gradients are averaged: the
    result is that of one process but for rounding.
    """
    load_target("quicksviewer.auto:register")()  # as a command this process does not know our own families
    tokenizer = load_target("transformers:AutoTokenizer").from_pretrained(folder, local_files_only=True)
    model = load_target("transformers:AutoModelForCausalLM").from_pretrained(folder, local_files_only=True)
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = WarmUpOptimizer(model, config, config.lm_steps)
    smooth = 0.0
    for step in range(config.lm_steps):
        first = step * config.lm_batch
        indices = range(10**7 + first + rank, 10**7 + first + config.lm_batch, size)
        batch = text_batch(indices, tokenizer, template, world, corpus)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(**batch)
        loss = out.loss
        (loss + (out.get("aux_loss") or 0)).backward()  # experts are kept equally busy from the start
        _average_gradients(model, size)
        optimizer.step()
        smooth = 0.95 * smooth + 0.05 * float(loss.detach()) if step else float(loss.detach())
        progress(loss=smooth)
    if rank == 0:
        model.save_pretrained(folder)
    return smooth


class WarmUpOptimizer:
    """Muon for the matrices of the layers, AdamW for all else; one cycle of rates, clipped gradients."""

    def __init__(self, model: nn.Module, config: PretrainConfig, steps: int):
        self.parameters = list(model.parameters())
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and is_layer(name)]
        taken = set(map(id, matrices))
        others = [p for p in self.parameters if id(p) not in taken]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=config.matrix_rate, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=config.rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.OneCycleLR(o, rate, steps, pct_start=0.1, cycle_momentum=False)
            for o, rate in zip(self.optimizers, (config.matrix_rate, config.rate), strict=True)
        ]

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in (*self.optimizers, *self.schedules):
            part.step()
        for parameter in self.parameters:
            parameter.grad = None


def is_layer(name: str) -> bool:
    """Whether a matrix maps activations to activations; embeddings and heads do not."""
    return not any(word in name for word in ("embed", "heads.", "lm_head"))


def _average_gradients(model, size: int) -> None:
    if size == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, (flat / size).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
