"""Seed 001: `python Qwen_code/task1_modular_lora/run_subtask_full_model_experiment.py`: every step in its
order, none after one that fails."""

import sys
from pathlib import Path

from quicksviewer.qwen_vl_finetune.pipelines.experiment import main

if __name__ == "__main__":
    sys.exit(main("modular-full", Path(__file__).parent))
