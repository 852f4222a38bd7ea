"""On the way into the model: frames to its size, pictures to tiles, prompts to ids. And when to stop.

Letters: N frames, H height, W width, C colours, S size of the model's input, B rows, T tokens.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

ASPECT_WEIGHT = 2.0
"""How much more a grid's wrong aspect ratio counts than its wrong size: distortion cannot be undone."""


def resize_frames(frames_NHWC: np.ndarray, size: int) -> Tensor:
    """Frames squashed to the model's input: uint8 (N, 3, size, size), bicubic, antialiased.

    Frames that have this size already come back unchanged. Raises ValueError when they are not uint8 RGB.
    """
    if frames_NHWC.dtype != np.uint8 or frames_NHWC.ndim != 4 or frames_NHWC.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 (N, H, W, 3), got {frames_NHWC.dtype} {frames_NHWC.shape}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    frames_NCHW = torch.from_numpy(np.require(frames_NHWC, requirements=["C", "W"])).permute(0, 3, 1, 2)
    if frames_NCHW.shape[2:] != (size, size) and len(frames_NCHW):
        frames_NCHW = F.interpolate(frames_NCHW, (size, size), mode="bicubic", antialias=True)
    return frames_NCHW.reshape(-1, 3, size, size).contiguous()


def tile_grid(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """Rows and columns of the tiles of a picture, (0, 0) for none: counts are known before there are pixels.

    At most `max_tiles` tiles, no more rows or columns than it takes to hold the picture's own pixels, and of
    these grids the one nearest to the picture in aspect ratio and area. When that is a single tile, which the
    whole picture is anyway, there is none. Raises ValueError on sizes below 1 or negative `max_tiles`.
    """
    if min(width, height, size) < 1 or max_tiles < 0:
        raise ValueError(f"no grid for {width}x{height}, size={size}, max_tiles={max_tiles}")
    most_rows, most_cols = math.ceil(height / size), math.ceil(width / size)
    grids = [
        (rows, cols)
        for rows in range(1, min(most_rows, max_tiles) + 1)
        for cols in range(1, min(most_cols, max_tiles // rows) + 1)
    ]

    def misfit(grid: tuple[int, int]) -> tuple[float, int]:
        rows, cols = grid
        aspect = abs(math.log(cols / rows * height / width))
        area = abs(math.log(rows * cols * size * size / (width * height)))
        return ASPECT_WEIGHT * aspect + area, rows * cols

    best = min(grids, key=misfit, default=(1, 1))
    return (0, 0) if best == (1, 1) else best


def image_tiles(image: Image.Image, size: int, max_tiles: int) -> list[Image.Image]:
    """The whole picture and, after it, its tiles row by row, each size x size.

    The picture is stretched to cover the grid of `tile_grid` exactly, so that every tile is all picture.
    """
    rows, cols = tile_grid(*image.size, size, max_tiles)
    pictures = [_squash(image, size, size)]
    if rows:
        cover = _squash(image, cols * size, rows * size)
        corners = [(col * size, row * size) for row in range(rows) for col in range(cols)]
        pictures += [cover.crop((x, y, x + size, y + size)) for x, y in corners]
    return pictures


def _squash(image: Image.Image, width: int, height: int) -> Image.Image:
    same = image.size == (width, height)
    return image.copy() if same else image.resize((width, height), Image.Resampling.BICUBIC)


def tokenizer_image_token(text: str, tokenizer, marks: Sequence[str] = ("<image>", "<video>")) -> list[int]:
    """Ids of a text that holds media marks, tokenised once and without adding special tokens.

    Raises ValueError when a mark is no token of its own, since it would fall to pieces.
    """
    own = tokenizer.get_added_vocab()
    if missing := [mark for mark in marks if mark not in own]:
        raise ValueError(
            f"the tokenizer has no special tokens {missing}; add them before training or loading"
        )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a row as soon as its generated text holds a keyword, even one that begins inside a token."""

    def __init__(self, keywords: Sequence[str], tokenizer, prompt_length: int = 0):
        """The first `prompt_length` tokens of each row are not looked at: 0 when the prompt is embeddings."""
        if isinstance(keywords, str) or not keywords or not all(keywords):
            raise ValueError(f"keywords must be a list of texts that are not empty, got {keywords!r}")
        if prompt_length < 0:
            raise ValueError(f"prompt_length must not be negative, got {prompt_length}")
        self.keywords, self.tokenizer, self.prompt_length = tuple(keywords), tokenizer, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor | None = None, **kwargs) -> Tensor:
        """Which rows are done: bool (B,), on the device of the ids (B, T)."""
        generated_BT = input_ids[:, self.prompt_length :].tolist()
        done = [self._has_keyword(row) for row in generated_BT]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _has_keyword(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(keyword in text for keyword in self.keywords)
