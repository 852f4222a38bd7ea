"""Load any vision-language model one way, and look at it with the same tools. Names are loaded on first use.

from quicksviewer.zoo import load_model, print_model_summary
result = load_model("checkpoints/my_model", task="vqa", device="cpu")
print_model_summary(result["model"])
"""

from importlib import import_module

_HOME = {
    "LoadedModel": "loader",
    "ModelLoader": "loader",
    "load_model": "loader",
    "MODEL_REGISTRY": "registry",
    "load_model_from_path": "files",
    "save_model": "files",
    "generate_answer_blip": "blip",
    "generate_caption_blip": "blip",
    "prepare_inputs_for_blip": "blip",
    "compare_models": "report",
    "count_parameters": "report",
    "get_model_info": "report",
    "print_model_summary": "report",
}
"""Name -> module of this folder that defines it."""
_TOOLS = (
    *("freeze_model", "get_device", "get_model_size_mb", "move_model_to_device"),
    *("parts_report", "train_only", "unfreeze_model"),
)
"""Tools for any module, the trainer's own: utils/modules.py."""

__all__ = sorted([*_HOME, *_TOOLS])


def __getattr__(name: str):
    if name in _TOOLS:
        home = "quicksviewer.utils.modules"
    elif name in _HOME:
        home = f"{__name__}.{_HOME[name]}"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
