import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, StoppingCriteriaList

from quicksviewer.utils.mm_utils import (
    KeywordsStoppingCriteria,
    image_tiles,
    resize_frames,
    tile_grid,
    tokenizer_image_token,
)

# Frames


def noise(count, height, width, low=0, high=256):
    return np.random.default_rng(0).integers(low, high, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (17, 31), (64, 200), (64, 64)])
@pytest.mark.parametrize("size", [32, 64, 97])
def test_resizing_equals_pil(height, width, size):
    # Between its two passes PIL clips to 0..255, and which comes first depends on its version: stay inside.
    frames = noise(2, height, width, low=64, high=192)
    ours = resize_frames(frames, size)
    pil = [Image.fromarray(f).resize((size, size), Image.Resampling.BICUBIC) for f in frames]
    theirs = torch.from_numpy(np.stack([np.asarray(p) for p in pil])).permute(0, 3, 1, 2)
    assert (ours.shape, ours.dtype) == ((2, 3, size, size), torch.uint8)
    assert (ours.int() - theirs.int()).abs().max() <= 2


def test_frames_of_the_right_size_are_unchanged():
    frames = noise(3, 32, 32)
    assert np.array_equal(resize_frames(frames, 32).permute(0, 2, 3, 1).numpy(), frames)


def test_resizing_takes_any_memory_layout():
    frames = noise(4, 30, 40)
    frames.flags.writeable = False
    assert torch.equal(resize_frames(frames[::-2], 16), resize_frames(frames[::-2].copy(), 16))
    assert resize_frames(frames[:0], 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("wrong", [np.zeros((1, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8)])
def test_resizing_refuses_what_is_no_frames(wrong):
    with pytest.raises(ValueError, match="must be uint8"):
        resize_frames(wrong, 8)


# Tiles


@pytest.mark.parametrize(
    ("width", "height", "most", "grid"),
    [
        (448, 448, 12, (0, 0)),
        (300, 200, 12, (0, 0)),
        (896, 896, 12, (2, 2)),
        (1000, 1000, 12, (2, 2)),
        (1344, 896, 12, (2, 3)),
        (896, 1344, 12, (3, 2)),
        (1344, 448, 12, (1, 3)),
        (4000, 3000, 6, (2, 3)),
        (4000, 4000, 7, (2, 2)),
        (4480, 448, 4, (1, 4)),
        (449, 449, 12, (0, 0)),
        (2000, 2000, 0, (0, 0)),
        (2000, 2000, 1, (0, 0)),
    ],
)
def test_grids_by_hand(width, height, most, grid):
    assert tile_grid(width, height, 448, most) == grid


def test_what_holds_for_every_grid():
    sides = (1, 31, 32, 33, 50, 64, 65, 100, 333, 2000)
    for width, height, most in itertools.product(sides, sides, (0, 1, 2, 5, 9, 12)):
        rows, cols = tile_grid(width, height, 32, most)
        assert (rows == 0) == (cols == 0) and rows * cols <= most and rows * cols != 1
        assert (rows - 1) * 32 < height and (cols - 1) * 32 < width  # no row or column without own pixels
        assert (
            tile_grid(height, width, 32, most) == (cols, rows)
            or rows * cols == tile_grid(height, width, 32, most)[0] * tile_grid(height, width, 32, most)[1]
        )


@pytest.mark.parametrize("wrong", [(0, 5, 8, 1), (5, 0, 8, 1), (5, 5, 0, 1), (5, 5, 8, -1)])
def test_a_grid_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match="no grid for"):
        tile_grid(*wrong)


def test_tiles_are_the_whole_and_then_its_parts():
    image = Image.fromarray(noise(1, 64, 96)[0])
    whole, *tiles = image_tiles(image, 32, 6)
    assert len(tiles) == 6 and all(tile.size == (32, 32) for tile in [whole, *tiles])
    assert whole.tobytes() == image.resize((32, 32), Image.Resampling.BICUBIC).tobytes()
    rows = [np.hstack([np.asarray(t) for t in tiles[i : i + 3]]) for i in (0, 3)]
    assert np.array_equal(np.vstack(rows), np.asarray(image))


@pytest.mark.parametrize(("width", "height"), [(100, 70), (70, 100), (333, 40), (2000, 31)])
def test_tiles_have_no_padding(width, height):
    white = Image.new("RGB", (width, height), (255, 255, 255))
    tiles = image_tiles(white, 32, 9)
    rows, cols = tile_grid(width, height, 32, 9)
    assert len(tiles) == 1 + rows * cols
    assert all(tile.getextrema() == ((255, 255),) * 3 for tile in tiles)


def test_without_tiles_there_is_the_whole():
    image = Image.new("RGB", (100, 100))
    assert [tile.size for tile in image_tiles(image, 32, 0)] == [(32, 32)]
    small = Image.new("RGB", (32, 32))
    tiles = image_tiles(small, 32, 9)
    assert len(tiles) == 1 and tiles[0] is not small


# Text


@pytest.fixture(scope="module")
def tokenizer():
    """One token per letter, of which some words are tokens too."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    made.add_tokens(["user:", "END"])
    return made


def test_marks_stay_whole(tokenizer):
    ids = tokenizer_image_token("a<image>b <video>", tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<image>", "b", "Ġ", "<video>"]
    assert tokenizer_image_token("", tokenizer) == []


def test_a_tokenizer_without_the_marks_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"\['<audio>'\]"):
        tokenizer_image_token("hi", tokenizer, marks=("<image>", "<audio>"))


def ids_of(tokenizer, *texts) -> torch.Tensor:
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [tokenizer.eos_token_id] * (longest - len(row)) for row in rows])


def test_rows_stop_one_by_one(tokenizer):
    stop = KeywordsStoppingCriteria(["END", "###"], tokenizer)
    ids = ids_of(tokenizer, "no end", "an END", "some ###", "### more", "##", "E ND")
    done = stop(ids, None)
    assert done.dtype == torch.bool
    assert done.tolist() == [False, True, True, True, False, False]


def test_a_keyword_may_span_tokens(tokenizer):
    stop = KeywordsStoppingCriteria(["\nuser: "], tokenizer)
    ids = ids_of(tokenizer, "bye\nuser: x", "bye user: x")
    assert tokenizer.convert_tokens_to_ids("user:") in ids[0]
    assert stop(ids, None).tolist() == [True, False]


def test_the_prompt_is_not_looked_at(tokenizer):
    prompt = ids_of(tokenizer, "say ###")
    stop = KeywordsStoppingCriteria(["###"], tokenizer, prompt_length=prompt.shape[1])
    assert stop(prompt, None).tolist() == [False]
    assert stop(torch.cat([prompt, ids_of(tokenizer, "ok #")], 1), None).tolist() == [False]
    assert stop(torch.cat([prompt, ids_of(tokenizer, "ok ###")], 1), None).tolist() == [True]


def test_special_tokens_can_be_keywords_and_letters_may_be_cut(tokenizer):
    assert KeywordsStoppingCriteria(["<image>"], tokenizer)(ids_of(tokenizer, "a<image>"), None).tolist() == [
        True
    ]
    cut = ids_of(tokenizer, "東")[:, :2]
    assert KeywordsStoppingCriteria(["東"], tokenizer)(cut, None).tolist() == [False]


def test_it_works_in_the_list_that_generate_uses(tokenizer):
    criteria = StoppingCriteriaList([KeywordsStoppingCriteria(["END"], tokenizer)])
    assert criteria(ids_of(tokenizer, "the END", "go on"), None).tolist() == [True, False]


@pytest.mark.parametrize("wrong", [[], [""], "END"])
def test_keywords_must_be_texts(tokenizer, wrong):
    with pytest.raises(ValueError, match="keywords"):
        KeywordsStoppingCriteria(wrong, tokenizer)
