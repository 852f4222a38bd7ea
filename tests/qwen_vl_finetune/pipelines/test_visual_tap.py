"""The tap against a real tower whose cells carry their own coordinates from the pixels on."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from quicksviewer.qwen_vl_finetune.pipelines.tap import VisualTap, places

PATCH = 14


@pytest.fixture(scope="module")
def tower():
    """Blocks add nothing and the patch embedding is the mean colour: what goes in is what the tap sees."""
    config = Qwen2_5_VLVisionConfig(
        depth=3,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        out_hidden_size=16,
        fullatt_block_indexes=[1],
        window_size=112,
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(config)
    with torch.no_grad():
        for block in tower.blocks:
            for layer in (block.attn.proj, block.mlp.down_proj):
                layer.weight.zero_()
                layer.bias.zero_()
        tower.patch_embed.proj.weight.zero_()
        for colour in range(3):
            tower.patch_embed.proj.weight[colour, colour] = 1 / (2 * PATCH * PATCH)
    return tower


def coordinates(height: int, width: int) -> Image.Image:
    """A picture of height x width patches: red is 3 x row, green 3 x column, blue tells both apart."""
    row, column = np.mgrid[:height, :width]
    cells = np.stack([3 * row, 3 * column, (row + 2 * column) % 251], axis=-1).astype(np.uint8)
    return Image.fromarray(cells.repeat(PATCH, axis=0).repeat(PATCH, axis=1))


def run(tower, sizes, levels):
    processor = Qwen2VLImageProcessorPil(do_normalize=False, do_rescale=False)
    pictures = [coordinates(*size) for size in sizes]
    seen = processor(images=pictures, do_resize=False, return_tensors="pt")
    with VisualTap(tower, levels) as tap, torch.no_grad():
        output = tower(seen["pixel_values"].float(), grid_thw=seen["image_grid_thw"])
        return tap.maps(seen["image_grid_thw"]), output.last_hidden_state


def read_back(map_CHW) -> torch.Tensor:
    return map_CHW[:3].permute(1, 2, 0).round().int()


SIZES = [
    [(32, 32), (32, 32)],  # 448 x 448
    [(18, 26), (32, 10)],  # non-square, of different size
    [(2, 40), (6, 6)],
]


@pytest.mark.parametrize("sizes", SIZES)
def test_every_cell_comes_out_where_it_is_in_the_picture(tower, sizes):
    maps, _ = run(tower, sizes, (0, 2))
    assert [tuple(m.shape) for m in maps] == [(2, 16, *size) for size in sizes]
    for found, size in zip(maps, sizes, strict=True):
        truth = torch.from_numpy(np.asarray(coordinates(*size))[::PATCH, ::PATCH].astype(np.int32))
        assert torch.equal(read_back(found[0]), truth)
        assert torch.equal(read_back(found[1]), truth)


def test_a_plain_reshape_puts_nearly_all_cells_elsewhere(tower):
    _, hidden = run(tower, [(32, 32)], (0,))
    truth = torch.from_numpy(np.asarray(coordinates(32, 32))[::PATCH, ::PATCH].astype(np.int32))
    right = (read_back(hidden.view(32, 32, -1).permute(2, 0, 1)) == truth).all(dim=-1).float().mean()
    assert right < 0.05


@pytest.mark.parametrize(("height", "width", "merge", "window"), [(4, 4, 2, 1), (6, 10, 2, 2), (9, 3, 3, 4)])
def test_places_are_a_permutation(height, width, merge, window):
    assert sorted(places(height, width, merge, window).tolist()) == list(range(height * width))


def test_what_cannot_be_tapped_is_refused(tower):
    with pytest.raises(ValueError, match=r"visual_layers \[3\]: the tower has the blocks 0 to 2"):
        VisualTap(tower, (0, 3))
    with pytest.raises(ValueError, match="each once"):
        VisualTap(tower, (1, 1))
    with pytest.raises(ValueError, match="no whole groups"):
        places(3, 4, 2, 4)
    with VisualTap(tower, (0,)) as tap:
        with pytest.raises(RuntimeError, match="has not run"):
            tap.maps(torch.tensor([[1, 2, 2]]))
        tower(torch.zeros(8, 1176), grid_thw=torch.tensor([[2, 2, 2]]))
        with pytest.raises(ValueError, match="is a video"):
            tap.maps(torch.tensor([[2, 2, 2]]))
    assert not any(block._forward_hooks for block in tower.blocks)
