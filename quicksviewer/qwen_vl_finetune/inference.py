"""A question about a picture, asked and answered, word by word if it is to be watched."""

from typing import Any

import torch

from quicksviewer.qwen_vl_finetune.backends import backend
from quicksviewer.qwen_vl_finetune.prompts import encode_prompt, user_turn
from quicksviewer.qwen_vl_finetune.settings import current
from quicksviewer.utils.generation import GREEDY
from quicksviewer.utils.image import as_rgb
from quicksviewer.utils.modules import get_device


def prepare_messages(instruction: str | None = None, image_first: bool | None = None) -> list[dict]:
    """One user's turn with a place for a picture and the instruction, in the order of training."""
    settings = current()
    first = settings.image_first if image_first is None else image_first
    return [user_turn(instruction or settings.instruction, image_first=first)]


def prepare_inputs(tokenizer, image: Any, messages: list[dict], device=None) -> dict[str, torch.Tensor]:
    """Tensors of one prompt with its picture (a PIL picture, a path or bytes), on `device` if it is given;
    generate_response brings them to the model's. tokenizer: the processor."""
    inputs = encode_prompt(tokenizer, messages, [as_rgb(image)])
    return {key: value.to(device) if device is not None else value for key, value in inputs.items()}


@torch.inference_mode()
def generate_response(
    model,
    tokenizer,
    inputs: dict[str, torch.Tensor],
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    min_p: float | None = None,
    use_streamer: bool = True,
) -> str:
    """The answer. With `use_streamer` it is also printed while it is made.

    It is drawn at `temperature`, among tokens at least `min_p` times as likely as the likeliest; temperature
    0 takes the likeliest each time, as the evaluation does. What is None is the settings'.
    """
    settings, words = current(), tokenizer.tokenizer
    temperature = settings.temperature if temperature is None else temperature
    min_p = settings.min_p if min_p is None else min_p
    choice = dict(do_sample=True, temperature=temperature, min_p=min_p) if temperature else dict(GREEDY)
    if use_streamer:
        from transformers import TextStreamer

        choice["streamer"] = TextStreamer(words, skip_prompt=True, skip_special_tokens=True)
    inputs = {key: value.to(get_device(model)) for key, value in inputs.items()}
    backend(settings.backend).for_inference(model)
    ids = model.generate(
        **inputs,
        **choice,
        use_cache=True,
        max_new_tokens=max_new_tokens or settings.max_new_tokens,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
    )
    return words.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def run_inference(model, tokenizer, image: Any, instruction: str | None = None, **options) -> str:
    """What the model answers to a picture. `options`: those of generate_response."""
    return generate_response(
        model, tokenizer, prepare_inputs(tokenizer, image, prepare_messages(instruction)), **options
    )
