"""Seed 001: `python Qwen_code/task1_modular_lora/subtask_full_model_eval/full_model_eval.py --config
FILE`."""

import sys
from pathlib import Path

from quicksviewer.qwen_vl_finetune.pipelines.steps import script

if __name__ == "__main__":
    sys.exit(script("modular-eval-full", Path(__file__).with_name("config_full_model_eval.json")))
