"""`qwen_vl_finetune.training`: that of quicksviewer."""

from quicksviewer.qwen_vl_finetune.training import *  # noqa: F403
