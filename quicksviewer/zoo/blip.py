"""Ask a BLIP: pictures and texts to inputs, answers, captions."""

import os
from contextlib import contextmanager

import torch

from quicksviewer.utils.image import load_image, to_rgb
from quicksviewer.utils.modules import get_device


def prepare_inputs_for_blip(processor, images, texts=None, device: str | torch.device | None = None):
    """What a BLIP takes: pixel_values (B, 3, S, S); with texts, input_ids and attention_mask (B, T), padded.

    images: a path, a picture, or a list of them; texts: as many, or one for one. On `device` if it is given.
    ValueError where their numbers differ or a text is longer than the model reads; MediaError as load_image.
    """
    pictures = [_picture(image) for image in _listed(images)]
    if texts is None:
        batch = processor(images=pictures, return_tensors="pt")
    else:
        texts = _listed(texts)
        if len(texts) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures and {len(texts)} texts: one text for each picture")
        batch = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        length, most = batch["input_ids"].shape[1], processor.tokenizer.model_max_length
        if length > most:
            start = max(texts, key=len)[:60]
            raise ValueError(f"a text of {length} tokens, the model reads {most}: {start!r} ...")
    return batch if device is None else batch.to(device)


def _listed(items) -> list:
    return list(items) if isinstance(items, (list, tuple)) else [items]


def _picture(image):
    """A picture of PIL from a path or bytes, upright RGB; a picture is made RGB."""
    is_file = isinstance(image, (str, os.PathLike, bytes))
    return load_image(image) if is_file else to_rgb(image)


@contextmanager
def _resting(model):
    """In eval mode inside, afterwards as before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def generate_answer_blip(
    model, processor, image, question: str | list[str], max_length: int = 20, num_beams: int = 3
):
    """The answer to a question about a picture, a text; for lists of both, a list.

    image: a path or a picture. max_length: tokens of an answer. A list gives what its items give one by one.
    """
    from quicksviewer.zoo.blip_writing import BlipForQuestionAnswering

    batch = prepare_inputs_for_blip(processor, image, question, get_device(model))
    if len(batch["input_ids"]) > 1 and not isinstance(model, BlipForQuestionAnswering):
        # transformers' own class would let answers look at the padding of their questions
        pairs = zip(image, question, strict=True)
        return [generate_answer_blip(model, processor, *pair, max_length, num_beams) for pair in pairs]
    with _resting(model):
        answers = _decoded(
            model, processor, model.generate(**batch, max_length=max_length, num_beams=num_beams)
        )
    return answers if isinstance(question, (list, tuple)) else answers[0]


def generate_caption_blip(
    model, processor, image, text: str | list[str] | None = None, max_length: int = 30, num_beams: int = 3
):
    """A caption of a picture, a text; for a list of pictures, a list. `text`: how captions begin.

    max_length: tokens of a caption with its beginning.
    """
    images = _listed(image)
    texts = [text] * len(images) if text is None or isinstance(text, str) else list(text)
    if len(texts) != len(images):
        raise ValueError(f"{len(images)} pictures and {len(texts)} texts: one text for each picture")
    search = dict(max_length=max_length, num_beams=num_beams)
    with _resting(model):
        if text is None:
            batch = prepare_inputs_for_blip(processor, images, device=get_device(model))
            captions = _decoded(
                model, processor, model.generate(pixel_values=batch["pixel_values"], **search)
            )
        else:  # transformers cuts the last token of every row: rows of a batch would have to be equally long
            captions = [_begun(model, processor, *pair, search) for pair in zip(images, texts, strict=True)]
    return captions if isinstance(image, (list, tuple)) else captions[0]


def _begun(model, processor, image, text: str, search: dict) -> str:
    batch = prepare_inputs_for_blip(processor, image, text, get_device(model))
    return _decoded(model, processor, model.generate(**batch, **search))[0]


def _decoded(model, processor, ids) -> list[str]:
    start = model.config.text_config.bos_token_id  # no special token of BLIP's tokenizers
    rows = [[i for i in row if i != start] for row in ids.tolist()]
    return [text.strip() for text in processor.tokenizer.batch_decode(rows, skip_special_tokens=True)]
