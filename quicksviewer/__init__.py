"""Video large multimodal models that cut a video into cubes. The public names are loaded on first use."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("quicksviewer")
except PackageNotFoundError:  # a checkout that was put on the path and not installed
    __version__ = "0+unknown"

_HOME = {
    "load_pretrained_model": "quicksviewer.model.builder",
    "LlavaLlamaConfig": "quicksviewer.model.language_model.llava_llama",
    "LlavaLlamaForCausalLM": "quicksviewer.model.language_model.llava_llama",
    "LlavaQwenConfig": "quicksviewer.model.language_model.llava_qwen",
    "LlavaQwenForCausalLM": "quicksviewer.model.language_model.llava_qwen",
    "QuicksviewerProcessor": "quicksviewer.model.processor",
}
"""Public name -> module that defines it."""

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
