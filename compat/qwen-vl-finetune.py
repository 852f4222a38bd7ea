"""The single file of old: trains, then reads one formula with the adapters that it has saved."""

import sys

from quicksviewer.qwen_vl_finetune.example import main

if __name__ == "__main__":
    sys.exit(main(["--mode", "training", *sys.argv[1:]]))
