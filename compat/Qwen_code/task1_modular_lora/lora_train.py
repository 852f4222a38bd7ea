"""Seed 001: `python Qwen_code/task1_modular_lora/lora_train.py --config FILE`."""

import sys
from pathlib import Path

from quicksviewer.qwen_vl_finetune.pipelines.steps import script

if __name__ == "__main__":
    sys.exit(script("modular-train", Path(__file__).with_name("config_lora.json")))
