"""Seed 001: `python Qwen_code/task1_modular_lora/subtask_vit_head_eval/lora_eval.py --config FILE`."""

import sys
from pathlib import Path

from quicksviewer.qwen_vl_finetune.pipelines.steps import script

if __name__ == "__main__":
    sys.exit(script("modular-eval-heads", Path(__file__).with_name("config_eval.json")))
