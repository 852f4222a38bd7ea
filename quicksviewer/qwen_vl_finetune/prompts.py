"""A picture and words become tokens: one way for training and inference, so that both see the same prompt.

A sample is {"messages": [a user's turn, an assistant's turn]}. The prompt is what the chat template makes of
the user's turn; the tokens of a training row are those of the prompt, then those of the answer and its end,
tokenised apart. Only the latter are learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from quicksviewer.constants import IGNORE_INDEX
from quicksviewer.utils.image import to_rgb
from quicksviewer.utils.utils import get_logger

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
"""What a processor gives by token, (1, T); everything else it gives by picture."""

log = get_logger(__name__)


def user_turn(instruction: str, image: Any = None, image_first: bool = True) -> dict:
    """One turn with a picture and words. Without an image the picture is a place to be filled."""
    picture = {"type": "image"} if image is None else {"type": "image", "image": image}
    words = {"type": "text", "text": instruction}
    return {"role": "user", "content": [picture, words] if image_first else [words, picture]}


def conversation(image: Any, answer: str, instruction: str, image_first: bool = True) -> dict:
    """The record of one row."""
    answered = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return {"messages": [user_turn(instruction, image, image_first), answered]}


def pictures_of(messages: list[dict]) -> list:
    """The pictures that stand in some turns, in their order."""
    parts = (part for turn in messages for part in turn["content"] if isinstance(part, Mapping))
    return [to_rgb(part["image"]) for part in parts if part.get("type") == "image" and "image" in part]


def encode_prompt(processor, messages: list[dict], images: list | None = None) -> dict[str, Tensor]:
    """Tensors of one prompt, up to where the answer begins. `images`: in place of those in the turns."""
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    pictures = pictures_of(messages) if images is None else images
    return dict(processor(text=[text], images=pictures or None, return_tensors="pt"))


def answer_text(processor, messages: list[dict]) -> str:
    """What the template writes after the prompt, without the end of the turn.

    ValueError where the template writes another prompt before an answer than before nothing.
    """
    prompt = processor.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template(messages, tokenize=False)
    end = processor.tokenizer.eos_token
    if not whole.startswith(prompt) or end not in whole[len(prompt) :]:
        raise ValueError(
            f"the chat template does not write a prompt, an answer and {end!r}: for a prompt "
            f"{prompt[-60:]!r} it wrote {whole[-120:]!r}"
        )
    return whole[len(prompt) :].rpartition(end)[0]


def answer_ids(tokenizer, answer: str) -> list[int]:
    """Tokens of an answer and its end. A control string within the answer is text like any other."""
    ids = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def encode_example(processor, record: Mapping, max_length: int | None = None) -> dict[str, Tensor]:
    """Tensors of one training row: the prompt's, then the answer's, and `labels` (1, T), which ignore the
    prompt. An answer is cut at `max_length` tokens; ValueError for a prompt that leaves it no room."""
    messages = record["messages"]
    row = encode_prompt(processor, messages[:-1])
    ids = answer_ids(processor.tokenizer, answer_text(processor, messages))
    length = row["input_ids"].shape[1]
    if max_length is not None and length >= max_length:
        raise ValueError(
            f"the prompt has {length} tokens and max_length is {max_length}: allow more, or scale pictures "
            "down (size of the image processor)"
        )
    ids = ids if max_length is None else ids[: max_length - length]
    answer = torch.tensor([ids])
    row["labels"] = torch.cat([torch.full_like(row["input_ids"], IGNORE_INDEX), answer], dim=1)
    row["input_ids"] = torch.cat([row["input_ids"], answer], dim=1)
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    if "mm_token_type_ids" in row:
        kinds = row["mm_token_type_ids"]
        row["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, len(ids))], dim=1)
    return row


def batched(rows: list[dict[str, Tensor]], pad_id: int, side: str) -> dict[str, Tensor]:
    """Rows of one sequence each become a batch (B, T), padded on a side; pictures follow each other, of those
    rows that have one."""
    fills = dict.fromkeys(PER_TOKEN, 0) | {"input_ids": pad_id, "labels": IGNORE_INDEX}
    batch = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        if key in fills:
            flat = [value[0] for value in values]
            batch[key] = pad_sequence(flat, batch_first=True, padding_value=fills[key], padding_side=side)
        else:
            batch[key] = torch.cat(values)
    return batch


@dataclass
class Collator:
    """Records become a training batch. `cut` counts the answers that were too long."""

    processor: Any
    max_length: int | None = None
    cut: int = field(default=0, init=False)

    def __call__(self, records: list[Mapping]) -> dict[str, Tensor]:
        rows = [encode_example(self.processor, record, self.max_length) for record in records]
        end = self.processor.tokenizer.eos_token_id
        cut = sum(int(row["input_ids"][0, -1] != end) for row in rows)
        if cut and not self.cut:
            log.warning(
                "an answer is longer than max_length=%d and is learned without its end", self.max_length
            )
        self.cut += cut
        return batched(rows, self.processor.tokenizer.pad_token_id, "right")
