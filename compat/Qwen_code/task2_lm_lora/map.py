"""Seed 001: `python Qwen_code/task2_lm_lora/map.py --config FILE`."""

import sys
from pathlib import Path

from quicksviewer.qwen_vl_finetune.pipelines.steps import script

if __name__ == "__main__":
    sys.exit(script("lm-map", Path(__file__).with_name("config_map.json")))
