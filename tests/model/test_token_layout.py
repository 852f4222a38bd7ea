"""The layout knows every length before a frame is decoded."""

import pytest
import torch
from tiny_world import fresh, video_row, videos

from quicksviewer.model.config import LayoutConfig, MultimodalConfig, published
from quicksviewer.model.layout import Layout
from quicksviewer.model.splice import splice, time_characters

DIGITS = "0123456789."


def layout(**sections) -> Layout:
    values = {"first_special_id": 100, "time_token_ids": list(range(11)), **sections}
    return Layout(MultimodalConfig.from_dict(values))


def test_a_published_video_of_420_frames_has_the_published_number_of_visual_tokens():
    ids = layout().video_ids(420)
    assert ids.count(layout().visual_id) == 64 * 84 + 64 == 5440
    assert ids.count(layout().time_id) == 84 * 7


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 64, 1000])
def test_a_video_is_a_thumbnail_and_timed_cubes(frames):
    it = layout()
    q, w, c = 64, 7, it.num_cubes(frames)
    expected = 1 + (1 + q + 1) + c * (w + q) + 1
    assert len(it.video_ids(frames)) == expected


def test_an_image_is_its_pictures_without_time():
    it = layout()
    assert len(it.image_ids(3)) == 2 + 3 * (64 + 2)
    assert it.time_id not in it.image_ids(3)
    with pytest.raises(ValueError, match="at least one picture"):
        it.image_ids(0)


def test_without_thumbnail_there_is_none():
    assert len(layout(thumbnail={"enabled": False}).video_ids(10)) == len(layout().video_ids(10)) - 66


@pytest.mark.parametrize("seconds", [0, 0.05, 0.5, 9.99, 10, 59.96, 419.5, 12345.6])
def test_fixed_times_are_written_as_python_would(seconds):
    characters, keep = time_characters(torch.tensor([seconds], dtype=torch.float64), LayoutConfig())
    text = "".join(DIGITS[i] for i in characters[0].tolist())
    assert text == f"{int(seconds * 10) / 10:07.1f}" and keep.all()


@pytest.mark.parametrize("seconds", [0.5, 1.5, 12.5, 100.5, 419.5])
def test_plain_times_are_the_published_ones(seconds):
    characters, keep = time_characters(torch.tensor([seconds]), LayoutConfig(time_style="plain"))
    text = "".join(
        DIGITS[i] for i, kept in zip(characters[0].tolist(), keep[0].tolist(), strict=True) if kept
    )
    assert text == str(round(seconds, 1))


def test_only_fixed_lengths_are_exact():
    it = layout(tower={"grid": 24})
    assert it.is_exact and not Layout(published(it.config)).is_exact


def test_splice_fills_slots_in_order_and_nothing_else():
    embeds, values = torch.zeros(2, 3, 2), torch.arange(6.0).view(3, 2) + 1
    slot = torch.tensor([[False, True, False], [True, False, True]])
    out = splice(embeds, values, slot)
    assert torch.equal(out[slot], values) and out[~slot].abs().sum() == 0


def test_what_the_model_makes_fills_exactly_the_slots_of_the_layout(tiny):
    loaded = fresh(tiny)
    row = video_row(loaded, videos(tiny)[0])
    batch = loaded.processor.batch([row])
    ids, lay = batch["input_ids"], loaded.processor.layout
    from quicksviewer.model.llava_arch import Media

    media = Media(
        batch["pixel_values"], batch["frame_times"], batch["medium_frames"], batch["medium_is_video"]
    )
    encoded = loaded.model.eval().encode_media(media)
    assert len(encoded.visual) == int((ids == lay.visual_id).sum())
    assert encoded.times.numel() == int((ids == lay.time_id).sum())
