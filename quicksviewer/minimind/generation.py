"""From questions about pictures to what the model reads: ids with placeholders, padding, pixels."""

import torch

from quicksviewer.minimind.vision_encoder import MiniMindVLM

IMAGE_TOKEN = "<|image|>"
"""The placeholder that a tokenizer gets when the configured one does not come out of it as one id."""


def fit_tokenizer(model: MiniMindVLM, tokenizer) -> int:
    """Let model and tokenizer agree on the placeholder; the id of it.

    The configured text stays if the tokenizer makes the configured ids of it. Otherwise IMAGE_TOKEN becomes a
    token of the tokenizer and the model's placeholder, which `save_pretrained` of both keeps. The embedding
    grows where it has no row for it.
    """
    params = model.params
    text, ids = params.image_special_token, params.image_ids
    if tokenizer(text, add_special_tokens=False)["input_ids"] == ids:
        return ids[0]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
    )
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if token_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    params.place_pictures(token_id, IMAGE_TOKEN, len(ids))
    return token_id


def encode_prompts(model: MiniMindVLM, tokenizer, texts: list[str], images: list | None = None) -> dict:
    """What `forward` and `generate` take: input_ids and attention_mask (B, T), padded on the left, and with
    `images` (one per text, PIL) pixel_values (B, 1, 3, S, S).

    A picture stands after its text. Where a row would be longer than the model's positions, text is cut on
    the left, never a picture. ValueError for lists of different length.
    """
    if images is not None and len(images) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(images)} images: give one image for each text")
    params = model.params
    run = [] if images is None else params.image_ids
    room = params.max_position_embeddings - len(run)
    if room < 1:
        raise ValueError(f"a picture takes {len(run)} of {params.max_position_embeddings} positions")
    rows = [tokenizer(text)["input_ids"][-room:] + run for text in texts]
    longest = max(map(len, rows))
    pad = params.pad_token_id if params.pad_token_id is not None else 0
    batch = {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device
        ),
    }
    if images is not None:
        pixels = [model.image2tensor(image, model.processor) for image in images]
        batch["pixel_values"] = torch.stack(pixels).to(model.device, model.dtype)
    return batch
