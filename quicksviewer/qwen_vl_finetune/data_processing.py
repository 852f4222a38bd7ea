"""Rows of pictures and LaTeX, shown to people and turned into conversations."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from quicksviewer.qwen_vl_finetune.prompts import conversation
from quicksviewer.qwen_vl_finetune.rows import open_rows
from quicksviewer.qwen_vl_finetune.settings import current
from quicksviewer.synthetic.formulas import render


def load_latex_dataset(dataset_name: str | None = None, split: str = "train", max_samples: int | None = None):
    """Rows {"image", "text"} by index; pictures are opened when asked for.

    dataset_name: a name on the hub, a folder, a .jsonl or .parquet file, or "synthetic" (rows.py); None and a
    max_samples of None take the settings'.
    """
    settings = current()
    count = settings.max_samples if max_samples is None and split == "train" else max_samples
    return open_rows(dataset_name or settings.dataset_name, split, count)


def display_dataset_sample(dataset, index: int = 2) -> dict:
    """Print how large the data set is and what one row holds, and give the row. Of a data set that is shorter
    the last row."""
    if not len(dataset):
        raise ValueError("the data set is empty")
    index = min(index, len(dataset) - 1)
    sample = dataset[index]
    image = sample["image"]
    print(f"{len(dataset)} rows; row {index}: a picture of {image.width}x{image.height} ({image.mode})")
    print(f"LaTeX: {sample['text']}")
    return sample


def render_latex(latex_text: str) -> Any:
    """Show a formula: in a notebook as mathematics, elsewhere as text. Gives a picture of it, or None where
    mathtext, which knows a part of LaTeX, cannot draw it."""
    if _in_notebook():
        from IPython.display import Math, display

        display(Math(latex_text))
    else:
        print(latex_text)
    try:
        return render(latex_text)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"(no picture: {error})")
        return None


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def convert_to_conversation(
    sample: dict, instruction: str | None = None, image_first: bool | None = None
) -> dict:
    """One row as {"messages": [user: picture and instruction, assistant: LaTeX]}."""
    settings = current()
    first = settings.image_first if image_first is None else image_first
    return conversation(sample["image"], sample["text"], instruction or settings.instruction, first)


class Conversations(Sequence):
    """A data set as conversations, each made when it is asked for."""

    def __init__(self, dataset, instruction: str, image_first: bool = True):
        self.dataset, self.instruction, self.image_first = dataset, instruction, image_first

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place):
        places = range(len(self))[place]
        return [self._made(p) for p in places] if isinstance(place, slice) else self._made(places)

    def __iter__(self) -> Iterator[dict]:
        return (self._made(place) for place in range(len(self)))

    def _made(self, place: int) -> dict:
        return convert_to_conversation(self.dataset[place], self.instruction, self.image_first)


def convert_dataset_to_conversations(
    dataset, instruction: str | None = None, image_first: bool | None = None
) -> Conversations:
    """The whole data set as conversations: a sequence that holds no picture."""
    settings = current()
    first = settings.image_first if image_first is None else image_first
    return Conversations(dataset, instruction or settings.instruction, first)


def show_conversation_example(converted: Sequence, index: int = 0) -> dict:
    """Print one conversation and give it."""
    record = converted[min(index, len(converted) - 1)]
    for turn in record["messages"]:
        parts = [part.get("text", f"<{part['type']}>") for part in turn["content"]]
        print(f"{turn['role']}: {' '.join(parts)}")
    return record
