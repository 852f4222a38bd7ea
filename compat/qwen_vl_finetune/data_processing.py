"""`qwen_vl_finetune.data_processing`: that of quicksviewer."""

from quicksviewer.qwen_vl_finetune.data_processing import *  # noqa: F403
