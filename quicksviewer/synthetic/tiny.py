"""Tiny models and tokenizers of every family, made in a second: real classes, random weights, small sizes.

A folder written here looks like a downloaded checkpoint: config.json, model.safetensors, tokenizer files.
"""

import io
import json
from pathlib import Path

import torch

from quicksviewer.utils.registry import load_target, lookup

LANGUAGE_MODELS = {
    "qwen2": ("transformers:Qwen2Config", "transformers:Qwen2ForCausalLM"),
    "llama": ("transformers:LlamaConfig", "transformers:LlamaForCausalLM"),
    "minimind": ("quicksviewer.minimind.config:llmconfig", "quicksviewer.minimind.model:MiniMindForCausalLM"),
}
OWN_SHAPE = {"minimind": dict(dropout=0.0)}
"""Keys of a family's config that others do not have."""
TOWERS = {
    "siglip": ("transformers:SiglipVisionConfig", "transformers:SiglipVisionModel"),
    "clip": ("transformers:CLIPVisionConfig", "transformers:CLIPVisionModel"),
}
LM_SHAPE = dict(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=2048,
    initializer_range=0.05,
    tie_word_embeddings=True,
)
TOWER_SHAPE = dict(
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=48,
    patch_size=8,
)
CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end_of_text|>",
)
VOCABULARY = 640
ROLES = "system user assistant"


def qwen2_tokenizer(texts: list[str]):
    """Byte-level BPE with Qwen2's pre-tokenizer (digits stand alone), learned from texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learner = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[]).backend_tokenizer
    fresh = Tokenizer(models.BPE())
    fresh.pre_tokenizer, fresh.decoder, fresh.normalizer = (
        learner.pre_tokenizer,
        learner.decoder,
        learner.normalizer,
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(CHATML_SPECIALS), initial_alphabet=sorted(alphabet), show_progress=False
    )
    fresh.train_from_iterator([*texts, f" {ROLES} {ROLES}\n" * 50], trainer)
    model = json.loads(fresh.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=merges, extra_special_tokens=list(CHATML_SPECIALS[1:])
    )
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def llama_sentencepiece(texts: list[str]) -> bytes:
    """A SentencePiece BPE model as LLaMA's, learned from texts: byte fallback, single digits."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.splitlines() if line] + [ROLES] * 50),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n", *"0123456789."],
        minloglevel=2,
    )
    return model.getvalue()


def save_llama_tokenizer(folder: Path, texts: list[str]) -> None:
    """Write the SentencePiece model and read it back as transformers' own class, then save that."""
    from transformers import LlamaTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.model"
    path.write_bytes(llama_sentencepiece(texts))
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(LLAMA3_SPECIALS)})
    tokenizer.eos_token = "<|eot_id|>"
    tokenizer.save_pretrained(folder)


def make_language_model(folder: Path, family: str, texts: list[str], seed: int = 0, **shape) -> None:
    """A random language model and a tokenizer learned from `texts`, as a checkpoint folder. `shape`: keys of
    its config in place of LM_SHAPE's; a `vocab_size` may exceed what the tokenizer uses."""
    config_class, model_class = (
        load_target(name) for name in lookup(LANGUAGE_MODELS, family, "language model")
    )
    if family == "llama":
        save_llama_tokenizer(folder, texts)
        tokenizer = load_target("transformers:AutoTokenizer").from_pretrained(folder)
    else:
        tokenizer = qwen2_tokenizer(texts)
        tokenizer.save_pretrained(folder)
    # As published models do, leave room in the embedding for tokens that are added later.
    rows = -(-(len(tokenizer) + 16) // 64) * 64
    ids = dict(vocab_size=rows, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    config = config_class(**{**LM_SHAPE, **OWN_SHAPE.get(family, {}), **ids, **shape})
    if config.vocab_size < rows:
        raise ValueError(
            f"the tokenizer needs {rows} rows of the embedding, vocab_size is {config.vocab_size}"
        )
    torch.manual_seed(seed)
    model_class(config).save_pretrained(folder)


def make_tower(folder: Path, kind: str, seed: int = 0, **shape) -> None:
    """A random vision tower as a checkpoint folder."""
    config_class, model_class = (load_target(name) for name in lookup(TOWERS, kind, "tower"))
    torch.manual_seed(seed)
    extra = {"vision_use_head": False} if kind == "siglip" else {}
    model_class(config_class(**{**TOWER_SHAPE, **shape, **extra})).save_pretrained(folder)
