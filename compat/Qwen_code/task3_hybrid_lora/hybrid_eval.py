"""Seed 001: `python Qwen_code/task3_hybrid_lora/hybrid_eval.py --config FILE`."""

import sys
from pathlib import Path

from quicksviewer.qwen_vl_finetune.pipelines.steps import script

if __name__ == "__main__":
    sys.exit(script("hybrid-eval", Path(__file__).with_name("config_hybrid_eval.json")))
