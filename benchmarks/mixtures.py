"""Sizes of training rows drawn like the published mixtures, for benchmarks of packing and balance.

Shares of texts, pictures and videos are those of the published stages (rows of tables 4 to 6 of the paper);
lengths within a kind are lognormal, with the published token layout: 64 tokens a cube, one cube for five
frames, 1 frame a second, at most 420. They say how methods compare, not what a real corpus holds.
"""

import numpy as np

from quicksviewer.data.packing import sizes_of

SHARES = {"stage2": (0.03, 0.93, 0.04), "stage3": (0.01, 0.19, 0.80)}
"""Stage -> shares of texts, of rows with pictures, of videos."""
PICTURES = {"stage2": (1, 5), "stage3": (1, 9)}
"""Stage -> least pictures of a row with pictures, and one more than the most: a whole and its tiles."""
CAP = {"stage2": 16384, "stage3": 32768}
"""Published longest rows in tokens."""


def draw(stage: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sizes (N, 3) as the packer wants them, and the kind of each row: 0 text, 1 picture, 2 video."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, count, p=SHARES[stage])
    words = np.clip(rng.lognormal(5.0, 0.9, count), 16, 4000).astype(int)
    pictures = rng.integers(*PICTURES[stage], count)
    seconds = np.clip(rng.lognormal(4.0, 1.0, count), 4, 420).astype(int)
    cubes = np.maximum(np.round(seconds / 5).astype(int), 2)
    tokens = np.select([kind == 0, kind == 1], [words, words + 2 + 66 * pictures], words + 68 + 70 * cubes)
    frames = np.select([kind == 0, kind == 1], [0 * words, pictures], seconds)
    return sizes_of(np.minimum(tokens, CAP[stage]), frames), kind
