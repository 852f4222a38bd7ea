"""A published Quicksviewer checkpoint becomes one of this project, with the behaviour that it was trained
with.

    python -m quicksviewer import-published FOLDER OUT [--vision-tower FOLDER] [--template NAME]

Names are translated, the published tokens move into our own table, timestamps stay plain. Weights are read
from safetensors files as they are; pickles only by another process that is bounded and restricted.
"""

import argparse
import shutil
import sys
from pathlib import Path

from quicksviewer.conversation import TEMPLATES
from quicksviewer.model.consolidate import write_weights
from quicksviewer.model.delta_command import progress_of
from quicksviewer.model.export import dtype_of, write_settings
from quicksviewer.model.export_weights import expected_shapes, fit
from quicksviewer.model.folder_aside import folder_aside, seal_weights
from quicksviewer.model.import_config import (
    MEDIA,
    TEMPLATES_OF,
    backbone_of,
    mm_config,
    model_config,
    refuse_others,
    tower_config,
)
from quicksviewer.model.import_pickles import read_weights
from quicksviewer.model.import_vocabulary import move_rows, read_vocabulary
from quicksviewer.model.processor import QuicksviewerProcessor
from quicksviewer.model.published import our_name
from quicksviewer.model.raw_weights import RawTensor
from quicksviewer.utils.config import load_mapping

WORKSPACE = "workspace"
GROUPED_DIGITS = (
    "this tokenizer joins digits: the published model read the times of its cubes in groups of digits, here "
    "they are written digit by digit, so answers about times may differ"
)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage."""
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="quicksviewer import-published", description=about)
    parser.add_argument("folder", type=Path, help="published checkpoint, read")
    parser.add_argument("out", type=Path, help="folder, written")
    parser.add_argument(
        "--vision-tower", type=Path, help="folder with the config of a tower that is not known"
    )
    parser.add_argument("--template", choices=TEMPLATES, help="default: that of the language model")
    parser.add_argument("--max-shard-size", type=float, default=5.0, help="of a weight file, in GB")
    args = parser.parse_args(argv)
    try:
        with progress_of(f"{args.folder} -> {args.out}") as report:
            notes = import_published(
                args.folder, args.out, args.vision_tower, args.template, args.max_shard_size, report
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in notes:
        print(f"note: {note}")
    print(f"{args.out}: written from {args.folder}")
    return 0


def import_published(
    folder: Path,
    out: Path,
    vision_tower: Path | None = None,
    template: str | None = None,
    max_shard_gb: float = 5.0,
    report=lambda _: None,
) -> list[str]:
    """Write `out`; what a user has to know of it. ValueError for a checkpoint that is not understood
    (missing and unknown tensors are listed), for a folder that exists; then nothing lies under its name."""
    theirs = load_mapping(folder / "config.json")
    backbone = backbone_of(theirs)
    refuse_others(theirs)
    with folder_aside(out) as aside:
        workspace = aside / WORKSPACE
        tensors = renamed(read_weights(folder, workspace / "weights"))
        vocabulary = read_vocabulary(folder, workspace / "tokenizer")
        mm = mm_config(theirs, tower_config(tensors, vision_tower), vocabulary)
        model_config(theirs, mm, vocabulary).save_pretrained(aside)
        template = template or TEMPLATES_OF[backbone]
        QuicksviewerProcessor(vocabulary.tokenizer, mm.to_dict(), template, MEDIA).save_pretrained(aside)
        write_settings(aside, aside, dtype_of(aside))
        tensors = fit(folder, move_rows(tensors, vocabulary), expected_shapes(aside))
        names = write_weights(aside, tensors, None, max_shard_gb, report)
        shutil.rmtree(workspace)
        seal_weights(aside, out, names)
    return [] if vocabulary.writes_single_digits else [GROUPED_DIGITS]


def renamed(tensors: dict[str, RawTensor]) -> dict[str, RawTensor]:
    """By our names, without those that nothing uses. ValueError where two become one."""
    found: dict[str, RawTensor] = {}
    for name, tensor in tensors.items():
        if (ours := our_name(name)) is None:
            continue
        if ours in found:
            raise ValueError(f"{name} and another tensor are both {ours}")
        found[ours] = tensor
    return found


if __name__ == "__main__":
    sys.exit(main())
