"""`from qwen_vl_finetune import main_training_pipeline`: the names of quicksviewer.qwen_vl_finetune."""

from quicksviewer import qwen_vl_finetune as _home
from quicksviewer.qwen_vl_finetune import __all__ as __all__


def __getattr__(name: str):
    return getattr(_home, name)
