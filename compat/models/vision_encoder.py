"""The names of quicksviewer.minimind, under the name that the MiniMindVLM guide imports them from."""

from quicksviewer.minimind import (
    MiniMindForCausalLM,
    MiniMindVLM,
    VisionEncoder,
    VLLMconfig,
    batch_multimodal_inference,
    benchmark_model_performance,
    diagnose_model_issues,
    get_model_configs,
    llmconfig,
    multimodal_generate,
    profile_model_execution,
    train_multimodal_model,
)

__all__ = [
    "MiniMindForCausalLM",
    "MiniMindVLM",
    "VLLMconfig",
    "VisionEncoder",
    "batch_multimodal_inference",
    "benchmark_model_performance",
    "diagnose_model_issues",
    "get_model_configs",
    "llmconfig",
    "multimodal_generate",
    "profile_model_execution",
    "train_multimodal_model",
]
