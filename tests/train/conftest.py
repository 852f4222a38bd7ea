"""What several files of real runs share."""

import pytest
from tiny_runs import STEPS, text_rows, video_rows, write_recipe


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """Ten steps over captions and texts, without noise: the same on any number of ranks."""
    rows = video_rows(tiny, 4) + text_rows(tiny, 4)
    noise = dict(noise_start=0.0, noise_end=0.0)
    folder = tmp_path_factory.mktemp("engines")
    return write_recipe(tiny, folder, rows, max_steps=STEPS, learning_rate=2e-3, **noise)
