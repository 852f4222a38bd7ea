"""Tiny checkpoints of models that answer, describe or compare pictures: BLIP, CLIP, SigLIP, Qwen2.5-VL.

Real classes, random weights, tokenizers learned from texts: a folder looks like a downloaded one.

    make_vlm(folder, "blip", ["What shape is it?", "circle"], task="vqa")

Nothing here needs torchvision.
"""

import re
import tempfile
from collections import Counter
from pathlib import Path

import torch

from quicksviewer.synthetic.tiny import llama_sentencepiece, qwen2_tokenizer
from quicksviewer.utils.registry import load_target, lookup

WIDTH = 64
TEXT_SHAPE = dict(hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
VISION_SHAPE = TEXT_SHAPE | dict(image_size=32, patch_size=8)
BLIP_TASKS = {
    "vqa": "transformers:BlipForQuestionAnswering",
    "conditional_generation": "transformers:BlipForConditionalGeneration",
    "image_text_retrieval": "transformers:BlipForImageTextRetrieval",
}
BLIP_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BLIP_STARTS = ("[DEC]", "[ENC]")
"""The last two words of BLIP's vocabulary: what a decoder and an encoder begin with."""
QWEN_SPECIALS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_vlm(folder: str | Path, kind: str, texts: list[str], seed: int = 0, **options) -> None:
    """A random checkpoint of a row of MAKERS. `options`: BLIP's `task`, and `text` and `vision`, mappings of
    config keys in place of TEXT_SHAPE's and VISION_SHAPE's."""
    make = lookup(MAKERS, kind, "vision-language model")
    torch.manual_seed(seed)
    make(Path(folder), texts, **options)


def blip_tokenizer(texts: list[str], max_length: int = 64):
    """WordPiece over all words of the texts and, for every other word, their characters."""
    words = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    letters = sorted({letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz?.,"))
    pieces = [*BLIP_SPECIALS, *letters, *(f"##{letter}" for letter in letters), *sorted(words), *BLIP_STARTS]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return load_target("transformers:BertTokenizer")(vocab=vocabulary, model_max_length=max_length)


def _save(folder: Path, model, processor) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _square(vision: dict) -> dict:
    return {"height": vision["image_size"], "width": vision["image_size"]}


def _make_blip(folder, texts, task="vqa", text=None, vision=None, max_length=64) -> None:
    from transformers import BlipConfig, BlipImageProcessorPil, BlipProcessor

    tokenizer = blip_tokenizer(texts, max_length)
    # At the default ranges (1e-10 for the vision side) random models say the same to all pictures and texts.
    vision = VISION_SHAPE | {"initializer_range": 0.1} | (vision or {})
    config = BlipConfig(
        text_config=TEXT_SHAPE
        | dict(
            vocab_size=len(tokenizer),
            max_position_embeddings=max_length,
            bos_token_id=tokenizer.convert_tokens_to_ids(BLIP_STARTS[0]),
            eos_token_id=tokenizer.sep_token_id,
            sep_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.1,
        )
        | (text or {}),
        vision_config=vision,
        initializer_range=0.1,
        image_text_hidden_size=WIDTH,
    )
    model = load_target(lookup(BLIP_TASKS, task, "task of blip"))(config)
    _save(folder, model, BlipProcessor(BlipImageProcessorPil(size=_square(vision)), tokenizer))


def clip_tokenizer(texts: list[str], max_length: int = 32):
    """Byte-level BPE as CLIP's, with merges that put the words of the texts together letter by letter."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())}):
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for piece in rest:
            merges.append((left, piece))
            left += piece
            pieces.append(left)
    # CLIP finds a text's vector at the last id of the vocabulary, which ends it.
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=max_length)


def _make_clip(folder, texts, text=None, vision=None) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    tokenizer = clip_tokenizer(texts)
    vision = VISION_SHAPE | (vision or {})
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    ids |= dict(pad_token_id=tokenizer.pad_token_id, vocab_size=len(tokenizer), max_position_embeddings=32)
    config = CLIPConfig(
        text_config=TEXT_SHAPE | ids | (text or {}), vision_config=vision, projection_dim=WIDTH
    )
    picture = CLIPImageProcessorPil(size=_square(vision), crop_size=_square(vision))
    _save(folder, CLIPModel(config), CLIPProcessor(picture, tokenizer))


def _make_siglip(folder, texts, text=None, vision=None) -> None:
    from transformers import (
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
        SiglipProcessor,
        SiglipTokenizer,
    )

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "spiece.model"
        path.write_bytes(llama_sentencepiece([line.lower() for line in texts]))
        tokenizer = SiglipTokenizer(str(path), model_max_length=32)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
    tokenizer = SiglipTokenizer.from_pretrained(folder)
    vision = VISION_SHAPE | (vision or {})
    sizes = dict(vocab_size=len(tokenizer), max_position_embeddings=32, projection_size=WIDTH)
    sizes |= dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = SiglipConfig(text_config=TEXT_SHAPE | sizes | (text or {}), vision_config=vision)
    picture = SiglipImageProcessorPil(size=_square(vision))
    _save(folder, SiglipModel(config), SiglipProcessor(picture, tokenizer))


def _learned_qwen(texts):
    tokenizer = qwen2_tokenizer(texts)
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_SPECIALS)})
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def _real_qwen(texts):
    return load_target("quicksviewer.synthetic.qwen_tokenizer:qwen_tokenizer")()


QWEN_TOKENIZERS = {"learned": _learned_qwen, "real": _real_qwen}
"""Some hundred tokens learned from the texts, or Qwen's own 151,665, whatever the texts are."""


def _make_qwen2_5_vl(
    folder, texts, text=None, vision=None, tokenizer="learned", pixels=(56 * 56, 112 * 112)
) -> None:
    """`tokenizer`: a row of QWEN_TOKENIZERS. `pixels`: the fewest and the most of a picture."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    tokenizer = lookup(QWEN_TOKENIZERS, tokenizer, "tokenizer of qwen2_5_vl")(texts)
    ids = dict(zip(QWEN_SPECIALS, tokenizer.convert_tokens_to_ids(list(QWEN_SPECIALS)), strict=True))
    heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=len(tokenizer))
    heads |= dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=512)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = TEXT_SHAPE | heads | dict(rope_parameters=rope) | (text or {})
    tower = dict(depth=2, hidden_size=WIDTH, intermediate_size=128, num_heads=4)
    tower |= dict(fullatt_block_indexes=[1], window_size=56, out_hidden_size=text["hidden_size"])
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=tower | (vision or {}),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )
    picture = Qwen2VLImageProcessorPil(size={"shortest_edge": pixels[0], "longest_edge": pixels[1]})
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    picture.save_pretrained(folder)


MAKERS = {
    "blip": _make_blip,
    "clip": _make_clip,
    "siglip": _make_siglip,
    "qwen2_5_vl": _make_qwen2_5_vl,
}
"""Kind -> what writes it: (folder, texts, **options)."""
