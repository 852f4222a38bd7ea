"""A model whose greedy answers depend on what it is shown and asked; a fresh one says the same to all."""

import torch


def chatty(loaded, scale: float = 6.0):
    """The same fresh model with the language model's matrices made larger, ready to answer."""
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if name.startswith("model.") and weight.ndim > 1:
                weight.mul_(scale)
    loaded.model.eval()
    return loaded
