"""The training loop of tasks 1 and 3: rates by group, warm-up and cosine, gradients gathered, clipped,
checked."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from quicksviewer.qwen_vl_finetune.pipelines.batches import Batch
from quicksviewer.qwen_vl_finetune.pipelines.config import dtype_named
from quicksviewer.qwen_vl_finetune.pipelines.settings import Optimisation
from quicksviewer.qwen_vl_finetune.progress import Progress
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Group:
    """Parameters that share a rate. What does not require a gradient is left out."""

    name: str
    modules: tuple[nn.Module, ...]
    rate: float
    decay: float = 0.0

    def named(self) -> list[tuple[str, nn.Parameter]]:
        pairs = (pair for module in self.modules for pair in module.named_parameters())
        return [(f"{self.name}: {name}", p) for name, p in pairs if p.requires_grad]


def cosine_with_warmup(total: int, warmup_ratio: float) -> Callable[[int], float]:
    """Factor of the rate at each of `total` steps: up in a line, then down to 0 by half a cosine."""
    warm = math.ceil(total * warmup_ratio)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    return factor


def fit(
    groups: Iterable[Group],
    batches: DataLoader,
    losses_of: Callable[[Batch], dict[str, Tensor]],
    config: Optimisation,
    on_step: Callable[[int, int, dict[str, float]], None],
    on_epoch: Callable[[int], None],
) -> None:
    """Train for `config.epochs`, with a line on how far it is now and then.

    losses_of  a batch -> scalars; "loss" is what is trained, the others are told
    on_step    (epoch from 1, step from 1, means over the step's batches), after each step
    on_epoch   after each epoch, and after its last step: an epoch's last batches may be fewer than grad_accum
    """
    groups = list(groups)
    named = [pair for group in groups for pair in group.named()]
    parameters = [p for _, p in named]
    device = parameters[0].device
    total = math.ceil(len(batches) / config.grad_accum) * config.epochs
    optimizer, schedule = _optimizer(groups, total, config.warmup_ratio)
    step, progress = 0, Progress(total)
    for epoch in range(1, config.epochs + 1):
        for gathered in _steps(batches, config.grad_accum):
            means = _backward(gathered, losses_of, device, config.amp_dtype)
            if step == 0:
                check_gradients(named)
            nn.utils.clip_grad_norm_(parameters, config.max_norm, error_if_nonfinite=True)
            optimizer.step()
            rates = schedule.get_last_lr()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            on_step(epoch, step, means)
            progress(step, means["loss"], rates)
        on_epoch(epoch)


def _optimizer(groups: Iterable[Group], total: int, warmup_ratio: float):
    """AdamW over all groups, and the schedule of its rates."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for _, p in group.named()], "lr": group.rate, "weight_decay": group.decay}
            for group in groups
        ]
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_with_warmup(total, warmup_ratio))


def _steps(batches: Iterable[Batch], grad_accum: int) -> Iterable[list[Batch]]:
    gathered = []
    for batch in batches:
        gathered.append(batch)
        if len(gathered) == grad_accum:
            yield gathered
            gathered = []
    if gathered:
        yield gathered


def _backward(gathered: list[Batch], losses_of, device: torch.device, amp_dtype: str) -> dict[str, float]:
    """Gradients of the mean over the gathered batches, and the mean of each loss."""
    total: dict[str, Tensor] = {}
    for batch in gathered:
        with amp(device, amp_dtype):
            losses = losses_of(batch.to(device))
        (losses["loss"] / len(gathered)).backward()
        for name, loss in losses.items():
            total[name] = total.get(name, 0) + loss.detach() / len(gathered)
    return {name: value.item() for name, value in total.items()}


def amp(device: torch.device, dtype: str):
    """Products in `dtype`; float32 leaves them as they are."""
    name = dtype_named(dtype)
    return nullcontext() if name == "float32" else torch.autocast(device.type, getattr(torch, name))


def check_gradients(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """RuntimeError for trained parameters that the first backward pass has not reached."""
    if silent := [name for name, parameter in named if parameter.grad is None]:
        raise RuntimeError(
            f"{len(silent)} parameters should learn and got no gradient, such as {', '.join(silent[:3])}"
        )
