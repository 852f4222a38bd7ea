"""Forged pictures with masks and labels: copy-move, splice and noise patches, and real ones beside them.

What gives a forgery away is what does so in photographs: every camera leaves the fixed pattern of its
sensor on all its pictures (photo-response non-uniformity, doi:10.1109/TIFS.2006.873602). A moved piece
carries the pattern shifted, a piece of another camera's picture carries that one's, and a piece hidden
under noise little of any. Pictures are written at the size at which they are read: scaling would blur the
pattern, here as in life.

The layout is that of seed 001: `trainingset2/` with `train_idx.json` and `val_idx.json`, `testset2/` with
`annotation.json`; each with `image/` and `spatial_localize/`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PERIOD = 7
"""Pixels after which a sensor's pattern repeats; divides the patches of Qwen2.5-VL."""
STRENGTH, GRAIN = 20.0, 2.0
"""Grey levels: standard deviation of the pattern, and of the noise that each picture has of its own. A real
sensor's pattern is below one level; this one can be learned from some hundred pictures in a minute."""
UNIT = 28
"""Sides of pictures are multiples of this, so that the letterbox neither scales nor shifts by part of a
patch."""
AREA = (0.1, 0.3)
"""Share of a picture that is forged."""


@dataclass(frozen=True, kw_only=True)
class ForgerySpec:
    """How many pictures of which size; each is a pure function of (seed, split, number)."""

    train: int = 96
    val: int = 32
    test: int = 32
    size: int = 224
    """Longest side in pixels; every third picture is upright, every third broad, the others square."""
    seed: int = 0

    def __post_init__(self):
        if self.size % UNIT or self.size < 3 * UNIT:
            raise ValueError(f"size must be a multiple of {UNIT} and at least {3 * UNIT}, got {self.size}")
        for name in ("train", "val", "test"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} must be at least 2 (a real picture and a fake), got {getattr(self, name)}"
                )


SPLITS = (
    ("train", "trainingset2", "train_idx.json"),
    ("val", "trainingset2", "val_idx.json"),
    ("test", "testset2", "annotation.json"),
)
"""Split, its folder, its file of annotations."""


def write_forgeries(data_root: Path, spec: ForgerySpec | None = None) -> Path:
    """All splits under `data_root`, half of the pictures forged; gives `data_root` back."""
    spec = spec or ForgerySpec()
    for place, (split, folder, file) in enumerate(SPLITS):
        for inner in ("image", "spatial_localize"):
            (data_root / folder / inner).mkdir(parents=True, exist_ok=True)
        rows = [_write(data_root, folder, spec, place, number) for number in range(getattr(spec, split))]
        (data_root / folder / file).write_text(json.dumps(rows, indent=1) + "\n")
    return data_root


def _write(data_root: Path, folder: str, spec: ForgerySpec, split: int, number: int) -> dict:
    """One picture, its mask if it is forged, and its row of annotations."""
    pixels, mask, kind = forged_picture(spec, split, number)
    name = f"{SPLITS[split][0]}_{number:04d}_{kind}.png"
    Image.fromarray(pixels).save(data_root / folder / "image" / name)
    row = {"image_path": f"{folder}/image/{name}", "label": int(kind != "real")}
    if kind == "real":
        height, width = mask.shape
        return row | {"mask_path": f"{height}x{width}"}
    Image.fromarray(mask.astype(np.uint8) * 255).save(data_root / folder / "spatial_localize" / name)
    return row | {"mask_path": f"{folder}/spatial_localize/{name}"}


def forged_picture(spec: ForgerySpec, split: int, number: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Pixels uint8 (H, W, 3), forged pixels bool (H, W), and "real" or a row of FORGERIES. Odd numbers are
    fake."""
    rng = np.random.default_rng([spec.seed, split, number])
    height, width = _shape(spec.size, number // 2)
    pixels = shot(rng, height, width, sensor(spec.seed))
    mask, kind = np.zeros((height, width), bool), "real"
    if number % 2:
        kind = list(FORGERIES)[number // 2 % len(FORGERIES)]
        mask = region(rng, height, width)
        pixels = np.where(mask[..., None], FORGERIES[kind](rng, pixels, mask, spec.seed), pixels)
    return pixels.clip(0, 255).round().astype(np.uint8), mask, kind


def _shape(size: int, number: int) -> tuple[int, int]:
    short = size * 3 // 4 // UNIT * UNIT
    return ((size, size), (short, size), (size, short))[number % 3]


# --- a camera ---


def sensor(number: int) -> np.ndarray:
    """The pattern of one camera, with mean 0: (PERIOD, PERIOD, 3)."""
    pattern = np.random.default_rng([number, 7919]).standard_normal((PERIOD, PERIOD, 3))
    pattern -= pattern.mean(axis=(0, 1))
    return STRENGTH * pattern / pattern.std()


def shot(rng: np.random.Generator, height: int, width: int, pattern: np.ndarray) -> np.ndarray:
    """A photograph: something soft and coloured, the sensor's pattern, grain. (H, W, 3) float."""
    low, high = rng.uniform(50, 200, (2, 3))
    across, down = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    tilt = rng.uniform(0, 1)
    scene = Image.fromarray((low + (high - low) * (tilt * across + (1 - tilt) * down)).astype(np.uint8))
    pen = ImageDraw.Draw(scene)
    for _ in range(rng.integers(3, 7)):
        colour = tuple(int(c) for c in rng.integers(40, 215, 3))
        x, y = rng.integers(0, width), rng.integers(0, height)
        wide, high_ = rng.integers(width // 8, width // 2), rng.integers(height // 8, height // 2)
        draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        draw((int(x - wide / 2), int(y - high_ / 2), int(x + wide / 2), int(y + high_ / 2)), fill=colour)
    soft = np.asarray(scene.filter(ImageFilter.GaussianBlur(2)), np.float64)
    tiled = np.tile(pattern, (-(-height // PERIOD), -(-width // PERIOD), 1))[:height, :width]
    return soft + tiled + rng.normal(0, GRAIN, soft.shape)


def region(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """An ellipse or a rectangle somewhere inside, AREA of the picture: bool (H, W)."""
    area = rng.uniform(*AREA) * height * width
    wide = min(np.sqrt(area * rng.uniform(0.6, 1.6)), width * 0.8)
    high = min(area / wide, height * 0.8)
    left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
    draw((left, top, left + wide, top + high), fill=1)
    return np.asarray(canvas, bool)


# --- forgeries: what stands in the region afterwards, as a whole picture ---


def copy_move(rng: np.random.Generator, pixels: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    """A piece of the same picture, moved by no whole number of periods."""
    height, width = mask.shape
    down, across = (int(rng.integers(side // 5, side - side // 5)) for side in (height, width))
    down, across = (step + 3 if step % PERIOD in (0, 1, PERIOD - 1) else step for step in (down, across))
    return np.roll(pixels, (down, across), axis=(0, 1))


def splice(rng: np.random.Generator, pixels: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    """A piece of another scene, taken with another camera."""
    return shot(rng, *mask.shape, sensor(seed + 1 + int(rng.integers(1000))))


def noise_patch(rng: np.random.Generator, pixels: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    """The picture blurred, its pattern with it, under noise."""
    blurred = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    return np.asarray(blurred, np.float64) + rng.normal(0, 3 * GRAIN, pixels.shape)


FORGERIES: dict[str, Callable] = {"copy_move": copy_move, "splice": splice, "noise": noise_patch}
"""Kind -> (rng, pixels, mask, seed) -> pixels."""
