"""Words and pictures for Qwen2.5-VL without torchvision, and for MiniMindVLM."""

import importlib.util
import json

import pytest
import torch
from PIL import Image

from quicksviewer.zoo import load_model
from quicksviewer.zoo.qwen2_5_vl import Qwen2_5_VLPictureProcessor


@pytest.fixture
def qwen(loaded):
    if importlib.util.find_spec("torchvision"):
        pytest.skip("where torchvision is, transformers' own processor is used")
    return loaded("qwen2_5_vl", "vqa")


def opened(paths):
    return [Image.open(path).convert("RGB") for path in paths]


def message(*content):
    return [{"role": "user", "content": [{"type": kind, kind: value} for kind, value in content]}]


def test_a_picture_has_as_many_tokens_as_the_model_makes(qwen, pictures):
    processor, model = qwen["processor"], qwen["model"]
    assert type(processor) is Qwen2_5_VLPictureProcessor
    images = [*opened(pictures[:1]), Image.new("RGB", (200, 60), "red")]
    chats = [
        message(("image", images[0]), ("text", "red?")),
        message(("image", images[1]), ("text", "a circle")),
    ]
    options = dict(tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True})
    batch = processor.apply_chat_template(chats, **options)
    is_picture = batch["input_ids"] == model.config.image_token_id
    assert torch.equal(batch["mm_token_type_ids"].bool(), is_picture)
    assert is_picture.sum(1).tolist() == (batch["image_grid_thw"].prod(1) // 4).tolist()
    assert len(set(is_picture.sum(1).tolist())) == 2, "the pictures differ in size"
    assert batch["pixel_values"].shape == (int(batch["image_grid_thw"].prod(1).sum()), 1176)
    with torch.no_grad():
        together = model(**batch).logits
    for row, chat in enumerate(chats):
        one = processor.apply_chat_template([chat], **options)
        with torch.no_grad():
            alone = model(**one).logits[0]
        kept = batch["attention_mask"][row].bool()
        torch.testing.assert_close(together[row][kept], alone, atol=1e-4, rtol=1e-4)


def test_text_alone_and_what_does_not_fit(qwen, pictures):
    processor = qwen["processor"]
    batch = processor(text=["red?", "a blue square"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert not batch["mm_token_type_ids"].any()
    with pytest.raises(ValueError, match="1 pictures, and the texts hold 0 times"):
        processor(images=opened(pictures[:1]), text="red?")
    with pytest.raises(
        ModuleNotFoundError, match=r"videos for Qwen2.5-VL need torchvision.*quicksviewer\[gpu\]"
    ):
        processor(text="red?", videos=[[0]])


def test_what_a_folder_says_of_videos_is_kept(qwen, checkpoint, tmp_path):
    settings = {"video_processor_type": "Qwen2VLVideoProcessor", "size": {"longest_edge": 7}}
    folder = tmp_path / "in"
    qwen["model"].save_pretrained(folder)
    qwen["processor"].save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    for number in range(2):  # from the older file, then from our own
        result = load_model(folder, device="cpu")
        folder = tmp_path / f"out{number}"
        result["model"].save_pretrained(folder)
        result["processor"].save_pretrained(folder)
        written = json.loads((folder / "processor_config.json").read_text())
        assert written["video_processor"] == settings
        assert written["processor_class"] == "Qwen2_5_VLProcessor"
        assert written["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"


def test_minimind_gets_placeholders_as_ids(loaded, pictures):
    result = loaded("minimind_vlm", "vqa")
    processor, config = result["processor"], result["model"].config
    images, run = opened(pictures), config.image_ids
    batch = processor(images[:2], ["a <image> red", f"{config.image_special_token}blue"], padding=True)
    rows = batch["input_ids"]
    assert [row.count(run[0]) for row in rows] == [len(run)] * 2
    start = rows[0].index(run[0])
    assert rows[0][start : start + len(run)] == run
    assert batch["pixel_values"].shape == (2, 1, 3, 48, 48)
    uneven = processor(images, ["<image><image>", "<image>"], padding=True, return_tensors="pt")
    assert uneven["pixel_values"].shape == (3, 3, 48, 48)
    with torch.no_grad():
        assert result["model"](**uneven).logits.isfinite().all()
    with pytest.raises(ValueError, match="2 pictures, and the texts hold 1 times <image>"):
        processor(images[:2], "<image> red")
