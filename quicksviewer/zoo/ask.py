"""One picture and one text to any loaded model: an answer, a caption, or how well they go together."""

from typing import Any

import torch

from quicksviewer.constants import IMAGE_MARK
from quicksviewer.utils.generation import GREEDY
from quicksviewer.utils.image import load_image
from quicksviewer.utils.modules import get_device
from quicksviewer.utils.registry import lookup
from quicksviewer.zoo.blip import generate_answer_blip, generate_caption_blip, prepare_inputs_for_blip

TOKENS = 32
"""Most tokens of an answer."""


def ask(family: str, task: str, loaded: dict[str, Any], image, text: str) -> str:
    """What a model says to a picture (a path) and a text. `loaded`: what load_model gave, with its
    processor."""
    answer = lookup(ASK, f"{family} {task}", "family and task")
    with torch.no_grad():
        return answer(loaded["model"], loaded["processor"], image, text)


def _blip_match(model, processor, image, text: str) -> str:
    batch = prepare_inputs_for_blip(processor, image, text, get_device(model))
    return f"{model(**batch).itm_score.float().softmax(-1)[0, 1]:.4f} that they belong together"


def _clip_match(model, processor, image, text: str) -> str:
    return f"similarity {_pair(model, processor, image, text).logits_per_image.item():.4f}"


def _siglip_match(model, processor, image, text: str) -> str:
    score = _pair(model, processor, image, text, padding="max_length").logits_per_image.sigmoid()
    return f"{score.item():.4f} that they belong together"


def _pair(model, processor, image, text: str, padding=False):
    batch = processor(images=load_image(image), text=[text], padding=padding, return_tensors="pt")
    return model(**batch.to(get_device(model)))


def _qwen(model, processor, image, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return _written(model, processor, processor(images=[load_image(image)], text=prompt, return_tensors="pt"))


def _minimind(model, processor, image, text: str) -> str:
    batch = processor(images=[load_image(image)], text=f"{IMAGE_MARK}{text}", return_tensors="pt")
    return _written(model, processor, batch)


def _quicksviewer(model, processor, image, text: str) -> str:
    content = [{"type": "image", "image": str(image)}, {"type": "text", "text": text}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return _written(model, processor, batch)


def _written(model, processor, batch) -> str:
    batch = batch.to(get_device(model))
    ids = model.generate(**batch, max_new_tokens=TOKENS, **GREEDY)
    prompt = batch["input_ids"].shape[1]
    return processor.tokenizer.decode(ids[0, prompt:], skip_special_tokens=True).strip()


ASK = {
    "blip vqa": generate_answer_blip,
    "blip conditional_generation": generate_caption_blip,
    "blip image_text_retrieval": _blip_match,
    "clip image_text_retrieval": _clip_match,
    "siglip image_text_retrieval": _siglip_match,
    "qwen2_5_vl vqa": _qwen,
    "qwen2_5_vl conditional_generation": _qwen,
    "minimind_vlm vqa": _minimind,
    "minimind_vlm conditional_generation": _minimind,
    "quicksviewer vqa": _quicksviewer,
    "quicksviewer conditional_generation": _quicksviewer,
}
"""Family and task -> (model, processor, path of a picture, text) -> what is shown."""
