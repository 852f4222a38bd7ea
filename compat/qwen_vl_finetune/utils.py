"""`qwen_vl_finetune.utils`: that of quicksviewer."""

from quicksviewer.qwen_vl_finetune.utils import *  # noqa: F403
