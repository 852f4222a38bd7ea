"""Pictures with their truth, as the tower takes them.

Letters: B pictures, S pixels of the square's side, P patches of all pictures, D numbers of a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from quicksviewer.qwen_vl_finetune.pipelines.annotations import Annotation
from quicksviewer.qwen_vl_finetune.pipelines.letterbox import letterbox, letterbox_mask
from quicksviewer.qwen_vl_finetune.pipelines.losses import Targets
from quicksviewer.qwen_vl_finetune.pipelines.masks import read_mask
from quicksviewer.utils.image import load_image


@dataclass(frozen=True)
class Batch:
    """B pictures of one size and what is true of them."""

    index_B: Tensor
    """Numbers of the pictures in their data set."""
    pixels_PD: Tensor
    grid_B3: Tensor
    """Patches in time (1), height and width."""
    label_B: Tensor
    mask_BSS: Tensor
    inside_BSS: Tensor
    known_B: Tensor

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return replace(self, **moved)

    @property
    def targets(self) -> Targets:
        return Targets(self.label_B, self.mask_BSS, self.inside_BSS, self.known_B)


class PictureSet(Dataset):
    """Annotated pictures, letterboxed to `size` pixels. Reading raises MediaError or ValueError with the
    file."""

    def __init__(self, annotations: Sequence[Annotation], image_processor, size: int):
        self.annotations = annotations
        self.image_processor = image_processor
        self.size = size

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.annotations[index]
        picture = load_image(row.image)
        square, box = letterbox(picture, self.size)
        mask = self._mask(row, picture.size)
        seen = self.image_processor(images=[square], do_resize=False, return_tensors="pt")
        return {
            "index_B": torch.tensor([index]),
            "pixels_PD": seen["pixel_values"],
            "grid_B3": seen["image_grid_thw"],
            "label_B": torch.tensor([row.label]),
            "mask_BSS": torch.from_numpy(
                np.zeros((1, self.size, self.size), np.uint8) if mask is None else mask
            ),
            "inside_BSS": torch.from_numpy(box.inside(self.size))[None],
            "known_B": torch.tensor([row.label == 0 or mask is not None]),
        }

    def _mask(self, row: Annotation, picture_size: tuple[int, int]) -> np.ndarray | None:
        """Forged pixels of a fake, uint8 (1, S, S); None where there are none or nobody knows them."""
        mask = None if row.mask is None else read_mask(row.mask)
        if mask is None:
            return None
        try:
            return letterbox_mask(mask, picture_size, self.size)[None].astype(np.uint8)
        except ValueError as error:
            raise ValueError(f"{row.mask}: {error}") from error


def collate(items: Sequence[dict[str, Tensor]]) -> Batch:
    return Batch(**{f.name: torch.cat([item[f.name] for item in items]) for f in fields(Batch)})


def loader(
    pictures: PictureSet, batch_size: int, workers: int, shuffle_seed: int | None = None
) -> DataLoader:
    """Batches in order, or in an order of its own each epoch, which the seed decides."""
    generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
    return DataLoader(
        pictures,
        batch_size=batch_size,
        shuffle=shuffle_seed is not None,
        generator=generator,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
