"""Ask a MiniMindVLM about pictures: the next token of many pairs, or a text about one.

Both take `tokenizer`, or use the one that was put on the model (`model.tokenizer = tokenizer`). Model and
tokenizer have to agree on the placeholder of a picture; `generation.fit_tokenizer` sees to it.
"""

import torch

from quicksviewer.minimind.generation import encode_prompts, fit_tokenizer
from quicksviewer.minimind.vision_encoder import MiniMindVLM


def tokenizer_of(model: MiniMindVLM, tokenizer=None):
    """The given tokenizer or the model's, which knows the placeholder afterwards. ValueError without one."""
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ValueError("no tokenizer: give tokenizer=..., or put one on the model as model.tokenizer")
    fit_tokenizer(model, tokenizer)
    return tokenizer


@torch.no_grad()
def batch_multimodal_inference(
    model: MiniMindVLM, texts: list[str], images: list, batch_size: int = 4, tokenizer=None
) -> list[int]:
    """The most likely next token of every text with its picture (PIL): a list of ids.

    Texts may differ in length: they are padded on the left, so that the last place of a row is its last
    token. The result is that of one pair at a time. ValueError for lists that do not go together.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(images) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(images)} images: give one image for each text")
    tokenizer, model = tokenizer_of(model, tokenizer), model.eval()
    found = []
    for start in range(0, len(texts), batch_size):
        some = slice(start, start + batch_size)
        batch = encode_prompts(model, tokenizer, texts[some], images[some])
        out = model(
            **batch, position_ids=positions(batch["attention_mask"]), use_cache=False, logits_to_keep=1
        )
        found += out.logits[:, -1].argmax(dim=-1).tolist()
    return found


def positions(attention_mask_BT: torch.Tensor) -> torch.Tensor:
    """Places of the tokens of rows that are padded on the left: (B, T), 0 at the first token of each."""
    return (attention_mask_BT.cumsum(dim=1) - 1).clamp(min=0)


def multimodal_generate(
    model: MiniMindVLM,
    text_prompt: str,
    image=None,
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 0.9,
    tokenizer=None,
    use_cache: bool = True,
) -> str:
    """What the model writes after a prompt and a picture (PIL, or None), at most `max_length` tokens.

    Temperature 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in, and a `top_k` beyond the vocabulary
    is all of it. Chance is torch's: `torch.manual_seed` repeats a text. ValueError for values out of range.
    """
    if not (temperature >= 0 and top_k >= 0 and 0 < top_p <= 1 and max_length >= 1):
        raise ValueError(
            "temperature and top_k are not negative, top_p lies in (0, 1], max_length is at least 1; got "
            f"{temperature}, {top_k}, {top_p}, {max_length}"
        )
    tokenizer, model = tokenizer_of(model, tokenizer), model.eval()
    batch = encode_prompts(model, tokenizer, [text_prompt], None if image is None else [image])
    chance = {"do_sample": False}
    if temperature > 0:
        kept = min(top_k, model.params.vocab_size)
        chance = {"do_sample": True, "temperature": temperature, "top_k": kept, "top_p": top_p}
    eos = model.params.eos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    written = model.generate(
        **batch, max_new_tokens=max_length, use_cache=use_cache, eos_token_id=eos,
        pad_token_id=model.params.pad_token_id, **chance,
    )  # fmt: skip
    return tokenizer.decode(written[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
