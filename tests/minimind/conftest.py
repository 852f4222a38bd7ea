"""Small MiniMinds: without experts, and with some that are chosen and one that is shared."""

import pytest
import torch

from quicksviewer.minimind import MiniMindForCausalLM, llmconfig, preset

EXPERTS = dict(
    use_moe=True, n_routed_experts=4, num_experts_per_token=2, n_shared_experts=1, norm_topk_prob=True
)
KINDS = {"dense": {}, "experts": EXPERTS}


@pytest.fixture(params=KINDS)
def kind(request) -> dict:
    """What differs from the preset `debug`."""
    return KINDS[request.param]


@pytest.fixture
def model(kind) -> MiniMindForCausalLM:
    """A random language model in eval mode, with weights large enough that tokens differ."""
    torch.manual_seed(0)
    return MiniMindForCausalLM(preset("debug", llmconfig, initializer_range=0.2, **kind)).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows of twelve tokens, none of them special."""
    return torch.randint(3, 260, (2, 12), generator=torch.Generator().manual_seed(1))
