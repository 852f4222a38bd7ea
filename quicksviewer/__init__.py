"""Video large multimodal models that cut a video into cubes. The public names are loaded on first use.

Importing the package also tells transformers' Auto classes about its models, which takes seconds because
their classes are needed for it. The command line does without: its commands import what they use.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


def _is_command_line() -> bool:
    """Python sets argv[0] to "-m" while it looks for a module to run; the installed command has our name."""
    return bool(sys.argv) and (sys.argv[0] == "-m" or Path(sys.argv[0]).name == __name__)


if not _is_command_line():
    import_module("quicksviewer.auto").register()
