"""`qwen_vl_finetune.inference`: that of quicksviewer."""

from quicksviewer.qwen_vl_finetune.inference import *  # noqa: F403
