"""`qwen_vl_finetune.model_setup`: that of quicksviewer."""

from quicksviewer.qwen_vl_finetune.model_setup import *  # noqa: F403
