"""A fresh process that loads a folder as any user of transformers would, and asks it the question of the
probe.

python -P export_child.py FOLDER CLIP OUT        started by export_probe.py as a file, not as a module
"""

import sys
from pathlib import Path


def main(folder: str, clip: str, out: str) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import quicksviewer  # noqa: F401, the import tells transformers about our types

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)

    from quicksviewer.model.export_probe import aligned, ask

    ask(aligned(model.eval()), processor, Path(clip)).save(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
