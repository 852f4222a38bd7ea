"""Masks and letterboxes by the corrected rules, and rows that cannot be used."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from quicksviewer.qwen_vl_finetune.pipelines.annotations import parse_size, read_annotations
from quicksviewer.qwen_vl_finetune.pipelines.batches import PictureSet, collate
from quicksviewer.qwen_vl_finetune.pipelines.letterbox import PAD, letterbox, letterbox_mask
from quicksviewer.qwen_vl_finetune.pipelines.masks import read_mask, read_with_masks
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


FORGED = np.zeros((16, 16), bool)
FORGED[3:7, 2:12] = True


def painted(mode: str, colour, ground) -> Image.Image:
    image = Image.new(mode, (16, 16), ground)
    image.paste(colour, (2, 3, 12, 7))
    return image


def label_one() -> Image.Image:
    """Label 1 of the palette that PASCAL VOC has: a dark red."""
    image = painted("P", 1, 0)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    return image


@pytest.mark.parametrize(
    "image",
    [
        painted("L", 255, 0),
        painted("L", 1, 0),
        painted("L", 100, 0),
        painted("RGB", (255, 0, 0), (0, 0, 0)),
        painted("RGB", (0, 0, 90), (0, 0, 0)),
        painted("1", 1, 0),
        painted("LA", (255, 255), (255, 0)),
        painted("I;16", 65535, 0),
        label_one(),
    ],
    ids=["white", "ones", "grey", "red", "dark_blue", "bits", "clear", "wide", "palette"],
)
def test_a_mask_of_any_colour_and_level_is_read(image, tmp_path):
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), FORGED)


def test_the_noise_of_a_jpeg_is_not_forged(tmp_path):
    painted("L", 255, 0).save(tmp_path / "mask.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "mask.jpg")))) > 2
    assert np.array_equal(read_mask(tmp_path / "mask.jpg"), FORGED)


def test_masks_in_which_nothing_is_forged_are_counted_and_named(data, caplog):
    """Several dark levels: nobody knows which of them mean forged."""
    Image.fromarray(np.arange(200 * 400, dtype=np.uint32).reshape(200, 400).astype(np.uint8) % 101).save(
        data / "box" / "mask_2x2.png"
    )
    with caplog.at_level(logging.WARNING):
        rows = read_with_masks(data / "rows.json", data)
    assert "1 masks of fakes have no forged pixel" in caplog.text
    assert "box/mask_2x2.png (largest level 100)" in caplog.text
    assert [row.mask_is_known for row in rows] == [True, False, False, False]
    assert not PictureSet(rows, Qwen2VLImageProcessorPil(), 56)[1]["known_B"]


@pytest.mark.parametrize("level", [0, 7])
def test_a_mask_of_one_dark_level_is_unknown(level, tmp_path):
    Image.new("L", (8, 8), level).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png") is None


@pytest.mark.parametrize("outside", ["../outside.png", "box/../inside.png", "{absolute}", "link.png"])
@pytest.mark.parametrize("key", ["image_path", "mask_path"])
def test_no_path_leaves_the_root(data, key, outside):
    root = data / "root"
    root.mkdir()
    for path in (data / "outside.png", root / "inside.png"):
        Image.new("L", (8, 8), 255).save(path)
    (root / "link.png").symlink_to(data / "outside.png")
    said = outside.format(absolute=data / "outside.png")
    row = {"image_path": "inside.png", "label": 1, "mask_path": "inside.png"} | {key: said}
    (root / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=f"row 0: the path '{said}' leaves {root}"):
        read_annotations(root / "rows.json", root)


@pytest.mark.parametrize("stroke", [(slice(500, 503), slice(0, 4000)), (slice(900, 901), slice(8, 9))])
def test_a_mask_that_is_thinner_than_a_pixel_stays_where_it_is(stroke):
    mask = np.zeros((1000, 4000), bool)
    mask[stroke] = True
    found = letterbox_mask(mask, (4000, 1000), 448)
    rows, columns = np.nonzero(found)
    scale, top = 448 / 4000, (448 - 112) // 2
    middle = (np.argwhere(mask).mean(axis=0) + 0.5) * scale
    assert abs(rows.mean() + 0.5 - top - middle[0]) < 1 and abs(columns.mean() + 0.5 - middle[1]) < 1
    assert len(set(rows)) <= 2 and len(set(columns)) >= (448 if mask.sum() > 1 else 1)


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
