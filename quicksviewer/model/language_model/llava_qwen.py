"""Qwen2 as the language model: a config and a class."""

from transformers import Qwen2Config, Qwen2ForCausalLM

from quicksviewer.model.language_model.multimodal import MultimodalCausalLM


class LlavaQwenConfig(Qwen2Config):
    """Qwen2's configuration with `mm`: a MultimodalConfig as plain data, or None for a model without eyes."""

    model_type = "llava_qwen"
    mm: dict | None = None


class LlavaQwenForCausalLM(MultimodalCausalLM, Qwen2ForCausalLM):
    """Qwen2 that sees."""

    config_class = LlavaQwenConfig
