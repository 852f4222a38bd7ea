"""What a row costs this model, from the shapes of its parts: so that ranks are given the same work."""

from quicksviewer.data.sampler import CostModel
from quicksviewer.model.llava_arch import PARTS

DECODE_FLOPS = 1e11
"""What a GPU does while a megapixel is decoded for it: 1e14 a second, and 1,000 megapixels a second of the
data workers that it has."""


def cost_model(model) -> CostModel:
    """FLOPs of tokens, frames, attention and decoding, in units of a token's.

    A weight works twice for each token or patch that passes it, and twice more for each gradient; a frozen
    tower has no backward pass.
    """
    model = getattr(model, "get_base_model", lambda: model)()
    tower = model.vision_tower
    passes = 3 if any(p.requires_grad for p in tower.parameters()) else 1
    frame = 2.0 * passes * tower.num_patches * _weights(model, "vision_tower")
    config = model.config
    shape = _weights(model, "llm"), config.num_hidden_layers, config.hidden_size
    return CostModel.of_model(*shape, frame, DECODE_FLOPS)


def _weights(model, part: str) -> int:
    """Weights of a part, whole also where ZeRO-3 has spread them over ranks."""
    prefixes = tuple(f"{prefix}." for prefix in PARTS[part])
    return sum(
        getattr(p, "ds_numel", p.numel()) for n, p in model.named_parameters() if n.startswith(prefixes)
    )
