"""What every vision tower does the same way: pixels to numbers, chunks, grad mode, resizing, loading.

Letters: N frames, P patches (g x g), D width, H W sides of a picture in pixels.
"""

import math
from copy import deepcopy
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from quicksviewer.model.config import TowerConfig


class VisionTower(nn.Module):
    """A vision transformer of transformers, from uint8 pixels to patch tokens.

    Only what the patch tokens need is built: no layer after the selected one, no head, no unused LayerNorm.
    """

    MODEL: ClassVar[type[PreTrainedModel]]
    MEAN: ClassVar[tuple[float, float, float]]
    STD: ClassVar[tuple[float, float, float]]

    def __init__(self, config: TowerConfig, attn_implementation: str = "sdpa"):
        super().__init__()
        self.config, self.attn_implementation = config, attn_implementation
        self.vision = self.adapt(
            self.MODEL._from_config(deepcopy(config.vision), attn_implementation=attn_implementation)
        )
        self.hidden_size, self.image_size = config.hidden_size, config.image_size
        self.grid, self.num_patches = config.out_grid, config.num_patches

    def adapt(self, vision: nn.Module) -> nn.Module:
        """Take out of a freshly built transformer what the patch tokens do not need."""
        raise NotImplementedError

    def patch_tokens(self, pixels_N3HW: Tensor) -> Tensor:
        """Patch tokens of normalised pixels: (N, P, D)."""
        raise NotImplementedError

    def forward(self, pixels_N3HW: Tensor, min_chunks: int = 1) -> Tensor:
        """Patch tokens of uint8 pixels: (N, P, D). Without a graph exactly when no weight is trained.

        `min_chunks`: run at least so many chunks; under ZeRO-3 every rank must run as many as the others.
        ValueError for pixels of another type or size.
        """
        self._check(pixels_N3HW)
        frames = len(pixels_N3HW)
        chunks = max(-(-frames // self.config.frames_per_chunk), min_chunks)
        filler = pixels_N3HW[-1:].expand(max(chunks - frames, 0), -1, -1, -1)
        trained = any(p.requires_grad for p in self.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            parts = torch.cat([pixels_N3HW, filler]).tensor_split(chunks)
            tokens = torch.cat([self.resize(self.patch_tokens(self.normalise(part))) for part in parts])
            return tokens[:frames]

    def _check(self, pixels_N3HW: Tensor) -> None:
        wanted = (3, self.image_size, self.image_size)
        if pixels_N3HW.dtype != torch.uint8 or pixels_N3HW.shape[1:] != wanted:
            got = f"{pixels_N3HW.dtype} {tuple(pixels_N3HW.shape)}"
            raise ValueError(f"the tower takes uint8 pixels (N, {', '.join(map(str, wanted))}), got {got}")

    def normalise(self, pixels_N3HW: Tensor) -> Tensor:
        """(x / 255 - mean) / std per colour, in float32, then in the weights' dtype.

        The constants are no buffers: those that a checkpoint does not hold are lost on the meta device.
        """
        scale = [1 / (255 * std) for std in self.STD]
        shift = [-mean / std for mean, std in zip(self.MEAN, self.STD, strict=True)]
        colours = [
            pixels_N3HW[:, c].float() * a + b for c, (a, b) in enumerate(zip(scale, shift, strict=True))
        ]
        return torch.stack(colours, dim=1).to(self.vision.dtype)

    def resize(self, tokens_NPD: Tensor) -> Tensor:
        """The patch grid at the size that the config asks for, bilinear in float32: (N, P, D)."""
        grid = math.isqrt(tokens_NPD.shape[1])
        if grid == self.grid:
            return tokens_NPD
        image_NDgg = rearrange(tokens_NPD.float(), "n (row column) d -> n d row column", row=grid)
        resized = F.interpolate(image_NDgg, size=(self.grid, self.grid), mode="bilinear", align_corners=False)
        return rearrange(resized, "n d row column -> n (row column) d").to(tokens_NPD.dtype)

    def load_pretrained(self, path: str | Path) -> None:
        """Take the weights of a local folder: of the vision model alone, or of a whole CLIP or SigLIP.

        Frozen stays frozen; under ZeRO-3 the new weights are partitioned as they are read. ValueError if some
        are not there.
        """
        if not Path(path).is_dir():
            raise ValueError(f"{path} is no checkpoint folder")
        old = self.vision
        vision, report = self.MODEL.from_pretrained(
            path,
            config=self.config.vision,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation=self.attn_implementation,
            dtype=old.dtype,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{path} lacks {len(missing)} weights of the tower, e.g. {missing[0]}")
        device = next(old.parameters()).device
        trained = any(p.requires_grad for p in old.parameters())
        self.vision = self.adapt(vision if device.type == "meta" else vision.to(device))
        self.vision.requires_grad_(trained).train(old.training)
        if any(getattr(module, "gradient_checkpointing", False) for module in old.modules()):
            self.enable_gradient_checkpointing()

    def enable_gradient_checkpointing(self, **kwargs) -> None:
        """Recompute layers in the backward pass; `kwargs` go to torch's checkpoint."""
        self.vision.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs=kwargs or {"use_reentrant": False}
        )
