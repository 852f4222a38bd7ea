"""Masks and letterboxes by the corrected rules, and rows that cannot be used."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from quicksviewer.qwen_vl_finetune.pipelines.annotations import parse_size, read_annotations, read_mask
from quicksviewer.qwen_vl_finetune.pipelines.batches import PictureSet, collate
from quicksviewer.qwen_vl_finetune.pipelines.letterbox import PAD, letterbox, letterbox_mask
from quicksviewer.synthetic.forgeries import FORGERIES, ForgerySpec, forged_picture

HALF_PERCENT = 0.005


@pytest.fixture
def data(tmp_path):
    """Four pictures: real; a fake with a small mask in a folder with an x; two fakes without a mask."""
    (tmp_path / "box").mkdir()
    for name in ("real", "small", "lost", "sized"):
        Image.new("RGB", (400, 200), (90, 120, 30)).save(tmp_path / f"{name}.png")
    mask = np.zeros((200, 400), np.uint8)
    mask[100:120, 100:120] = 255  # 400 of 80,000 pixels
    Image.fromarray(mask).save(tmp_path / "box" / "mask_2x2.png")
    rows = [
        {"image_path": "real.png", "label": 0, "mask_path": "200x400"},
        {"image_path": "small.png", "label": 1, "mask_path": "box/mask_2x2.png"},
        {"image_path": "lost.png", "label": 1, "mask_path": "box/not_there.png"},
        {"image_path": "sized.png", "label": 1, "mask_path": "200x400"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_small_mask_stays_small_and_a_missing_one_is_unknown(data, caplog):
    with caplog.at_level(logging.WARNING):
        rows = read_annotations(data / "rows.json", data)
    assert "2 of 3 fakes have no mask" in caplog.text and "lost.png" in caplog.text
    assert [row.mask_is_known for row in rows] == [True, True, False, False]
    pictures = PictureSet(rows, Qwen2VLImageProcessorPil(), 448)
    batch = collate([pictures[index] for index in range(4)])
    assert batch.known_B.tolist() == [True, True, False, False]
    inside = batch.inside_BSS.sum(dim=(1, 2))
    assert inside.tolist() == [448 * 224] * 4
    share = batch.mask_BSS.sum(dim=(1, 2)) / inside
    assert share[1].item() == pytest.approx(HALF_PERCENT, rel=0.1)
    assert share[[0, 2, 3]].tolist() == [0, 0, 0]
    assert not (batch.mask_BSS.bool() & ~batch.inside_BSS).any()


def test_a_size_is_height_by_width_and_a_path_with_an_x_is_none():
    assert parse_size("512x384") == (512, 384)
    assert parse_size("trainingset2/512x384.png") is None and parse_size("mask_box") is None


def test_masks_of_ones_and_of_noise(tmp_path):
    ones = np.zeros((8, 8), np.uint8)
    ones[:2] = 1
    noise = np.zeros((8, 8), np.uint8)
    noise[0, 0] = 9
    for name, values in (("ones", ones), ("noise", noise)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    assert np.array_equal(read_mask(tmp_path / "ones.png"), ones == 1)
    assert read_mask(tmp_path / "noise.png") is None


@pytest.mark.parametrize("size", [(400, 200), (200, 400), (37, 37), (2000, 10)])
def test_the_letterbox_keeps_proportions_and_centres(size):
    square, box = letterbox(Image.new("RGB", size, (200, 0, 0)), 56)
    assert square.size == (56, 56) and max(box.width, box.height) == 56
    assert (
        abs(box.left - (56 - box.width - box.left)) <= 1 and abs(box.top - (56 - box.height - box.top)) <= 1
    )
    pixels, inside = np.asarray(square), box.inside(56)
    assert (pixels[~inside] == PAD).all() and (pixels[inside] == (200, 0, 0)).all()


def test_a_mask_of_another_shape_than_its_picture_is_refused(data):
    with pytest.raises(ValueError, match="the mask is 4 x 8, its picture 400 x 200"):
        letterbox_mask(np.ones((8, 4), bool), (400, 200), 56)
    Image.new("L", (200, 400), 255).save(data / "box" / "mask_2x2.png")
    pictures = PictureSet(read_annotations(data / "rows.json", data), Qwen2VLImageProcessorPil(), 56)
    with pytest.raises(ValueError, match="mask_2x2.png: the mask is 200 x 400"):
        pictures[1]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"image_path": "real.png"}, "'label' is missing"),
        ({"image_path": "real.png", "lable": 1}, "'label' is missing. Did you mean 'lable'?"),
        ({"image_path": "real.png", "label": 2}, "label must be 1 .fake. or 0 .real., got 2"),
        ({"image_path": "gone.png", "label": 0}, "no picture 'gone.png'"),
        ([1], "expected an object"),
    ],
)
def test_rows_that_cannot_be_used_are_named(data, row, told):
    (data / "rows.json").write_text(json.dumps([{"image_path": "real.png", "label": 0}, row]))
    with pytest.raises(ValueError, match=f"1 of 2 rows cannot be used: row 1: {told}"):
        read_annotations(data / "rows.json", data)


def test_forgeries_are_a_pure_function_and_all_kinds_differ_from_the_original():
    spec = ForgerySpec(size=84)
    kinds = set()
    for number in range(8):
        pixels, mask, kind = forged_picture(spec, 0, number)
        again, _, _ = forged_picture(spec, 0, number)
        assert np.array_equal(pixels, again) and mask.any() == bool(number % 2)
        kinds.add(kind)
    assert kinds == {"real", *FORGERIES}
