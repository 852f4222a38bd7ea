"""Annotations of forged and real pictures, in the layout of seed 001's data.

    DATA_ROOT/trainingset2/{image/, spatial_localize/, train_idx.json, val_idx.json}
    DATA_ROOT/testset2/{image/, spatial_localize/, annotation.json}

Each JSON file is a list of objects: `image_path` (from DATA_ROOT), `label` (1 fake, 0 real), `mask_path`.
Of a fake it is the path of a picture, bright where pixels were forged; of a real picture anything, by custom
its size "HEIGHTxWIDTH". A fake whose mask is not there teaches the class alone: its mask is unknown, not
full. No path leaves DATA_ROOT.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quicksviewer.utils.media_gate import RootedPath
from quicksviewer.utils.registry import did_you_mean
from quicksviewer.utils.utils import get_logger

logger = get_logger(__name__)

SIZE = re.compile(r"(\d+)\s*[xX]\s*(\d+)")
SHOWN = 3
"""Rows that an error names."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One picture. `mask` is None where no pixel is forged (label 0) or where nobody knows which (label
    1)."""

    name: str
    """As the annotation writes it: what results are listed under."""
    image: RootedPath
    label: int
    mask: RootedPath | None = None

    @property
    def mask_is_known(self) -> bool:
        return self.label == 0 or self.mask is not None


def parse_size(text: str) -> tuple[int, int] | None:
    """(height, width) of a text that is a size, "512x384"; None for any other, as a path with an x in it."""
    found = SIZE.fullmatch(text.strip())
    return (int(found[1]), int(found[2])) if found else None


def read_annotations(path: Path, data_root: Path, limit: int | None = None) -> list[Annotation]:
    """All pictures that a file of annotations names, the first `limit` if given; their files are there.

    ValueError names rows that cannot be used: keys missing, a label that is neither 0 nor 1, no such picture,
    a path that leaves `data_root`.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not readable as JSON: {error.msg}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list of pictures, got {_shown(rows)}")
    rows = rows[:limit] if limit else rows
    found, wrong = [], []
    for number, row in enumerate(rows):
        try:
            found.append(_annotation(row, data_root))
        except ValueError as error:
            wrong.append(f"row {number}: {error}")
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of {len(rows)} rows cannot be used: {'; '.join(wrong[:SHOWN])}"
        )
    _tell_unknown(path, found)
    return found


def _annotation(row: object, data_root: Path) -> Annotation:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {_shown(row)}")
    for key in ("image_path", "label"):
        if key not in row:
            raise ValueError(f"{key!r} is missing.{did_you_mean(key, row)}")
    label, name = row["label"], row["image_path"]
    if label not in (0, 1) or isinstance(label, bool):
        raise ValueError(f"label must be 1 (fake) or 0 (real), got {label!r}")
    if not isinstance(name, str) or not (image := rooted_file(data_root, name)):
        raise ValueError(f"no picture {name!r} in {data_root}")
    mask = _mask_path(row.get("mask_path"), data_root) if label else None
    return Annotation(name=name, image=image, label=label, mask=mask)


def _mask_path(written: object, data_root: Path) -> RootedPath | None:
    """The mask's file, None where there is none. A path is told from a size by its whole text."""
    if not isinstance(written, str) or not written.strip() or parse_size(written):
        return None
    return rooted_file(data_root, written)


def rooted_file(root: Path, written: str) -> RootedPath | None:
    """A path that a row names, bound to its root; None where no file is there. ValueError for one that leaves
    the root."""
    path = RootedPath(root, written)
    if ".." in Path(written).parts or not Path(path).resolve().is_relative_to(root.resolve()):
        raise ValueError(f"the path {written!r} leaves {root}")
    return path if Path(path).is_file() else None


def _tell_unknown(path: Path, annotations: Sequence[Annotation]) -> None:
    fakes = [annotation for annotation in annotations if annotation.label]
    if unknown := [annotation.name for annotation in fakes if annotation.mask is None]:
        logger.warning(
            "%s: %d of %d fakes have no mask; they teach and test the class alone: %s",
            path, len(unknown), len(fakes), ", ".join(unknown[:SHOWN]),
        )  # fmt: skip


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:60]} ({type(value).__name__})"
