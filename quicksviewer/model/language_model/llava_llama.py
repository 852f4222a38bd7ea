"""LLaMA as the language model: a config and a class."""

from transformers import LlamaConfig, LlamaForCausalLM

from quicksviewer.model.language_model.multimodal import MultimodalCausalLM


class LlavaLlamaConfig(LlamaConfig):
    """LLaMA's configuration with `mm`: a MultimodalConfig as plain data, or None for a model without eyes."""

    model_type = "llava_llama"
    mm: dict | None = None


class LlavaLlamaForCausalLM(MultimodalCausalLM, LlamaForCausalLM):
    """LLaMA that sees."""

    config_class = LlavaLlamaConfig
