"""What the heads see, told to the language model as extra tokens in front of the chat.

Letters: B pictures, F fused width of the heads, E extra tokens, D width of the language model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quicksviewer.qwen_vl_finetune.pipelines.heads import HeadOutput

VERDICT = 4
"""Numbers beside the pooled features: probability and logit of the class, mean and largest heat."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Shape of the fusion; it is stored beside its weights."""

    pooled_width: int
    model_width: int
    tokens: int = 4
    bottleneck: int = 256
    dropout: float = 0.1
    scale: float = 0.02
    """Spread of the tokens at the start: that of the language model's own embeddings."""

    def __post_init__(self):
        for name in ("pooled_width", "model_width", "tokens", "bottleneck", "scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


class FusionProjector(nn.Module):
    """HeadOutput -> (B, E, D) float32, through a bottleneck."""

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.config = config
        wide = config.tokens * config.model_width
        self.narrow = nn.Linear(config.pooled_width + VERDICT, config.bottleneck)
        self.widen = nn.Linear(config.bottleneck, wide)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.model_width)
        nn.init.constant_(self.norm.weight, config.scale)

    def forward(self, seen: HeadOutput) -> Tensor:
        with torch.autocast(seen.class_logit_B.device.type, enabled=False):
            heat_BHW = seen.heat_logits_BHW.sigmoid()
            verdict = (
                seen.class_logit_B.sigmoid(),
                seen.class_logit_B,
                heat_BHW.mean(dim=(1, 2)),
                heat_BHW.amax(dim=(1, 2)),
            )
            features = torch.cat([torch.stack(verdict, dim=1), seen.pooled_BF], dim=1)
            tokens = self.widen(self.dropout(nn.functional.gelu(self.narrow(features))))
            return self.norm(tokens.unflatten(1, (self.config.tokens, self.config.model_width)))
