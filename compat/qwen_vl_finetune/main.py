"""`qwen_vl_finetune.main`: that of quicksviewer."""

from quicksviewer.qwen_vl_finetune.main import *  # noqa: F403
