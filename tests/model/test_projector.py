"""Projectors: their depth, their widths, and what they refuse."""

import pytest
import torch
from torch import nn

from quicksviewer.model.config import ProjectorConfig
from quicksviewer.model.multimodal_projector import build_projector


@pytest.mark.parametrize(
    "kind, linears, gelus", [("linear", 1, 0), ("mlp1x_gelu", 1, 0), ("mlp3x_gelu", 3, 2)]
)
def test_layers(kind, linears, gelus):
    projector = build_projector(ProjectorConfig(kind=kind), 6, 10)
    kinds = [type(layer) for layer in projector]
    assert (kinds.count(nn.Linear), kinds.count(nn.GELU)) == (linears, gelus)
    out = projector(torch.randn(2, 4, 6))
    assert out.shape == (2, 4, 10)
    out.sum().backward()
    assert all(p.grad is not None for p in projector.parameters())


def test_identity_changes_nothing():
    projector, x = build_projector(ProjectorConfig(), 6, 6), torch.randn(2, 6)
    assert projector(x) is x and not list(projector.parameters())


def test_identity_cannot_change_the_width():
    with pytest.raises(ValueError, match="linear or mlp2x_gelu"):
        build_projector(ProjectorConfig(), 6, 10)
