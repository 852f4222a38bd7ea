"""MiniMind: a small language model with a mixture of experts, and with a vision tower MiniMindVLM.

The public names are loaded on first use. Read config.py, layers.py, moe.py, model.py, vision_encoder.py.
"""

from importlib import import_module

_HOME = {
    "MiniMindForCausalLM": "model",
    "MiniMindModel": "model",
    "MiniMindVLM": "vision_encoder",
    "PRESETS": "config",
    "VLLMconfig": "config",
    "VisionEncoder": "vision_encoder",
    "batch_multimodal_inference": "functions",
    "benchmark_model_performance": "diagnose",
    "diagnose_model_issues": "diagnose",
    "get_model_configs": "config",
    "llmconfig": "config",
    "make_optimizer": "train",
    "multimodal_generate": "functions",
    "preset": "config",
    "profile_model_execution": "diagnose",
    "train_multimodal_model": "train",
}
"""Public name -> module of this folder that defines it."""

__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
