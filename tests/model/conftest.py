import pytest
import torch
from checkpoint_pairs import write


@pytest.fixture
def pair(tmp_path):
    """A base and a target of two shards, without a model."""
    torch.manual_seed(0)
    shapes = {"a.weight": (40, 16), "b.weight": (16, 8), "c.bias": (8,), "d.scale": ()}
    base = {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    target = {name: weight * 1.01 for name, weight in base.items()} | {"new": torch.arange(5)}
    target["b.weight"] = base["b.weight"].clone()
    write(tmp_path / "base", [base])
    write(tmp_path / "target", [dict(list(target.items())[:2]), dict(list(target.items())[2:])])
    return tmp_path
