"""Seed 001: `python Qwen_code/task2_lm_lora/run_task2_experiment.py`: every step in its order, none after
one that fails."""

import sys
from pathlib import Path

from quicksviewer.qwen_vl_finetune.pipelines.experiment import main

if __name__ == "__main__":
    sys.exit(main("lm", Path(__file__).parent))
