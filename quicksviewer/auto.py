"""Our types in transformers' Auto classes."""


def register() -> None:
    """Let AutoConfig, AutoProcessor and the AutoModels for text, with and without images, know our models."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    from quicksviewer.minimind.config import VLLMconfig, llmconfig
    from quicksviewer.minimind.model import MiniMindForCausalLM, MiniMindModel
    from quicksviewer.minimind.vision_encoder import MiniMindVLM
    from quicksviewer.model.language_model.llava_llama import LlavaLlamaConfig, LlavaLlamaForCausalLM
    from quicksviewer.model.language_model.llava_minimind import LlavaMiniMindConfig, LlavaMiniMindForCausalLM
    from quicksviewer.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
    from quicksviewer.model.processor import QuicksviewerProcessor

    ours = {
        LlavaQwenConfig: LlavaQwenForCausalLM,
        LlavaLlamaConfig: LlavaLlamaForCausalLM,
        LlavaMiniMindConfig: LlavaMiniMindForCausalLM,
    }
    for config, model in ours.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        AutoProcessor.register(config, QuicksviewerProcessor, exist_ok=True)
    for config in (llmconfig, VLLMconfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(llmconfig, MiniMindModel, exist_ok=True)
    AutoModelForCausalLM.register(llmconfig, MiniMindForCausalLM, exist_ok=True)
    AutoModelForImageTextToText.register(VLLMconfig, MiniMindVLM, exist_ok=True)
