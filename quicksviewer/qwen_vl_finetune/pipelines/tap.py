"""What blocks of the vision tower see, as maps in the order of the picture.

Letters: B pictures, L tapped blocks, C width, H x W patches of a picture, S places in the tower's sequence.
Inside the tower patches stand neither row by row nor picture by picture as a reshape would have them: the
processor emits merge groups (2 x 2 patches), and the tower sorts the groups into attention windows. `places`
says where every patch of a picture went; nothing else in this project knows it.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn


@lru_cache(maxsize=256)
def places(height: int, width: int, merge: int, window: int) -> Tensor:
    """For each patch of a picture, row by row, its place in the tower's sequence: (H * W,) int64.

    Args:
        height, width: the picture in patches, multiples of `merge`.
        merge: patches on a side of a merge group.
        window: merge groups on a side of an attention window; windows at the right and lower edge are cut.
    """
    if height % merge or width % merge:
        raise ValueError(f"a picture of {height} x {width} patches has no whole groups of {merge} x {merge}")
    side = merge * window
    row = torch.arange(height)[:, None].expand(height, width)
    column = torch.arange(width)[None].expand(height, width)
    key = torch.zeros(height, width, dtype=torch.int64)
    # Slowest first: the window, the group in it, the patch in the group; each a digit of its own radix.
    for digit, radix in (
        (row // side, -(-height // side)),
        (column // side, -(-width // side)),
        (row // merge % window, window),
        (column // merge % window, window),
        (row % merge, merge),
        (column % merge, merge),
    ):
        key = key * radix + digit
    return key.flatten().argsort().argsort()


class VisualTap:
    """Listens to some blocks of a Qwen2.5-VL vision tower. Use it in a `with`, or call `close`.

        with VisualTap(tower, (7, 15, 23, 31)) as tap:
            tower(pixel_values, grid_thw=grid)
            maps = tap.maps(grid)

    `levels` are numbers of blocks; ValueError for one that the tower does not have.
    """

    def __init__(self, tower: nn.Module, levels: Sequence[int]):
        depth = len(tower.blocks)
        if wrong := [level for level in levels if not 0 <= level < depth]:
            raise ValueError(f"visual_layers {wrong}: the tower has the blocks 0 to {depth - 1}")
        if not levels or len(set(levels)) < len(levels):
            raise ValueError(f"visual_layers must name blocks, each once, got {list(levels)}")
        self.merge = tower.spatial_merge_size
        self.window = tower.window_size // self.merge // tower.patch_size
        self.levels = tuple(levels)
        self._seen: dict[int, Tensor] = {}
        self._handles = [tower.blocks[level].register_forward_hook(self._keep(level)) for level in levels]

    def _keep(self, level: int):
        def hook(_module, _inputs, output):
            self._seen[level] = output

        return hook

    def maps(self, grid_thw: Tensor) -> list[Tensor]:
        """Of each picture of the last call of the tower, (L, C, H, W) in raster order; then they are let go.

        `grid_thw` (B, 3) as the tower got it. RuntimeError where the tower has not run since.
        """
        if len(self._seen) < len(self.levels):
            raise RuntimeError("the tower has not run since its maps were taken last")
        seen_LSC = torch.stack([self._seen[level] for level in self.levels])
        self._seen.clear()
        found, start = [], 0
        for time, height, width in grid_thw.tolist():
            if time != 1:
                raise ValueError(f"the tap reads pictures; a grid of {time} x {height} x {width} is a video")
            where = places(height, width, self.merge, self.window).to(seen_LSC.device)
            found.append(seen_LSC[:, start + where].unflatten(1, (height, width)).permute(0, 3, 1, 2))
            start += height * width
        if start != seen_LSC.shape[1]:
            raise ValueError(f"the grids have {start} patches, the tower saw {seen_LSC.shape[1]}")
        return found

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
