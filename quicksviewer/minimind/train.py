"""Training in a loop of one screen: two losses, two learning rates.

For more than a look (several processes, checkpoints, resume) there is the project's trainer:
`python -m quicksviewer train --recipe minimind`.
"""

from collections.abc import Iterable

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)
PROJECTOR = "vision_proj"
"""In the names of the parameters between tower and language model."""


def make_optimizer(
    model: torch.nn.Module,
    lr: float = 1e-4,
    vision_lr: float = 5e-4,
    weight_decay: float = 0.01,
    steps: int = 1000,
    min_lr: float = 1e-6,
) -> tuple[AdamW, CosineAnnealingLR]:
    """AdamW with a rate of its own for the projector, over the parameters that learn, and the cosine that its
    rates follow for `steps` steps."""
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in learning if (PROJECTOR in name) == projects], "lr": rate}
        for projects, rate in ((False, lr), (True, vision_lr))
    ]
    optimizer = AdamW([g for g in groups if g["params"]], weight_decay=weight_decay)
    return optimizer, CosineAnnealingLR(optimizer, T_max=steps, eta_min=min_lr)


def train_multimodal_model(
    model: torch.nn.Module,
    train_dataloader: Iterable[dict],
    optimizer: Optimizer,
    num_epochs: int,
    scheduler: LRScheduler | None = None,
    max_norm: float = 1.0,
    log_every: int = 100,
) -> list[dict[str, float]]:
    """Train on batches of input_ids, attention_mask, labels and maybe pixel_values; means of every epoch.

    The loss is that of the tokens plus the routers' `aux_loss`. `scheduler` is stepped after every batch.
    ValueError for an epoch without batches and for a loss that is no number.
    """
    model.train()
    device = next(model.parameters()).device
    history = []
    for epoch in range(num_epochs):
        losses = []
        for index, batch in enumerate(train_dataloader):
            batch = {name: values.to(device) for name, values in batch.items()}
            losses.append(_step(model, batch, optimizer, max_norm))
            if not all(map(torch.isfinite, losses[-1])):
                raise ValueError(f"epoch {epoch}, batch {index}: the loss is {losses[-1][0].item()}")
            if scheduler is not None:
                scheduler.step()
            if index % log_every == 0:
                logger.info("epoch %d, batch %d: loss %.4f, aux_loss %.4f", epoch, index, *losses[-1])
        if not losses:
            raise ValueError(f"epoch {epoch}: the data loader gave no batch")
        loss, aux_loss = torch.stack([torch.stack(pair) for pair in losses]).mean(dim=0).tolist()
        history.append({"loss": loss, "aux_loss": aux_loss})
        logger.info("epoch %d: loss %.4f, aux_loss %.4f", epoch, loss, aux_loss)
    return history


def _step(model, batch: dict, optimizer: Optimizer, max_norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One update; the loss of the tokens and that of the routers."""
    out = model(**batch)
    optimizer.zero_grad()
    (out.loss + out.aux_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return out.loss.detach().float(), out.aux_loss.detach().float()
