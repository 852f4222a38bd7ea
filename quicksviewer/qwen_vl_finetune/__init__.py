"""Fine-tuning of Qwen2.5-VL on pictures of formulas: LoRA over 4-bit weights. Names are loaded on first use.

from quicksviewer.qwen_vl_finetune import main_training_pipeline
model, tokenizer, dataset = main_training_pipeline()

The three pipelines that detect forged pictures are in `pipelines/`.
"""

from importlib import import_module

_NAMES = {
    "model_setup": (
        *("fourbit_models", "load_model_and_tokenizer", "setup_peft_model", "load_lora_model"),
        *("save_model", "save_merged_model", "push_to_hub_merged", "show_memory_stats"),
    ),
    "data_processing": (
        *("load_latex_dataset", "display_dataset_sample", "render_latex", "convert_to_conversation"),
        *("convert_dataset_to_conversations", "show_conversation_example"),
    ),
    "training": ("setup_trainer", "train_model", "show_training_stats"),
    "inference": ("prepare_messages", "prepare_inputs", "generate_response", "run_inference"),
    "utils": ("get_gpu_memory_info", "print_memory_usage", "calculate_memory_difference"),
    "main": ("main_training_pipeline", "main_inference_pipeline"),
    "evaluation": ("evaluate", "read_pictures"),
}
"""Module of this folder -> the public names that it defines."""
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str):
    if name == "__version__":
        return import_module("quicksviewer").__version__
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
