"""Linear layers with GELU between them."""

from torch import nn


class Mlp(nn.Sequential):
    """`depth` linear layers: 0 is the identity, 1 has no GELU."""

    def __init__(self, in_width: int, out_width: int, depth: int):
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.GELU()] if i else []
            layers += [nn.Linear(out_width if i else in_width, out_width)]
        super().__init__(*layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal weights, no bias."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
